"""An ensemble for others: opened by plain diffusers where this package is not installed, and shared on a hub."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bare_environment import bare_python
from conftest import MakePlan
from drawing_files import VECTOR
from finished_run import an_evaluation, recorded_as_finished
from forked import ForkedProcess
from hub_server import TOKEN, Hub, client_settings, serving_hub, use_hub
from huggingface_hub import HfApi, ModelCard
from PIL import Image

from ebdiff_orchestrator.cluster.executor import ThisProcess
from ebdiff_orchestrator.ensemble import load_ensemble
from ebdiff_orchestrator.evaluation.sampling import SampleJob, sample_here, sample_on_workers
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import ensemble_digest
from ebdiff_orchestrator.run.view import View
from ebdiff_orchestrator.sharing.card import model_card
from ebdiff_orchestrator.sharing.export import export_run, module_files, push_run
from ebdiff_orchestrator.sharing.standalone import RasterPlan as RasterStandIn
from region_workers.networks.packed_weights import masks_of
from region_workers.storage.integrity import seal_folder
from schemas.data import RasterPlan
from schemas.errors import RunFailed, UserError
from schemas.plan import Plan

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from ensemble_fixtures import CLASSES, KINDS, PRUNED_NAMES, draw, saved_ensemble

REPO = "me/digits"
# What a stranger runs: every kind from its folder, one from the hub; the samples go to files.
STRANGER = """
import importlib.util, json, sys
import numpy as np, torch
from diffusers import DiffusionPipeline

ours = ("ebdiff_orchestrator", "region_workers", "schemas", "pydantic", "ray", "torch_pruning", "accelerate")
assert not [name for name in ours if importlib.util.find_spec(name)]
torch.set_num_threads(1)
out, classes, folders = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
for kind, place in folders.items():
    pipeline = DiffusionPipeline.from_pretrained(place, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    options = {"generator": [torch.Generator().manual_seed(seed) for seed in (1, 2)]}
    if pipeline.num_classes:
        options["class_labels"] = [seed % classes for seed in (1, 2)]
    if kind == "drawings":
        (rows,) = pipeline(2, output_type="rows", **options)
        assert len(pipeline(2, **options).drawings) == 2
        samples = np.stack([np.pad(each, ((0, 6 - len(each)), (0, 0))) for each in rows])
    else:
        samples = pipeline(2, output_type="pt", **options).images.numpy()
    np.save(f"{out}/{kind}.npy", samples)
with open(f"{folders['pixels']}/unet/config.json", "a") as config:
    config.write(" ")
load = DiffusionPipeline.from_pretrained
for refused in (lambda: pipeline.save_pretrained(out), lambda: load(folders["pixels"], trust_remote_code=True)):
    try:
        refused()
    except ValueError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that counts as finished, by the kind of its ensemble."""
    found = {kind: tmp_path_factory.mktemp("runs") / kind for kind in KINDS}
    for kind, run in found.items():
        saved_ensemble(run / "ensemble", kind=kind)
        recorded_as_finished(run, Plan())
    return found


@pytest.fixture(scope="module")
def exports(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The export of each, moved to another place."""
    first, moved = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("moved")
    for kind, run in runs.items():
        shutil.move(export_run(run, first / kind), moved / kind)
    return {kind: moved / kind for kind in runs}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving_hub() as server:
        yield server


@pytest.fixture
def at_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The stand-in is this process's hub, and knows its token."""
    for name, value in client_settings(hub.url, str(tmp_path / "hub")).items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def _ebdiff(*words: str, url: str, cache: Path, token: str) -> tuple[int, str]:
    """The exit code and all that the command prints; the token comes by the environment alone."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(cache), "HF_TOKEN": token}
    process = ForkedProcess("ebdiff", *words, env=env, begin=partial(use_hub, url, str(cache)))
    code = process.wait(100)
    return code, "".join(process.communicate())


def test_strangers_draw_our_bits_from_folders_and_from_the_hub(
    runs: dict[str, Path], exports: dict[str, Path], at_hub: Hub, tmp_path: Path
) -> None:
    assert masks_of(load_ensemble(runs["packed"]).unet.experts[0])
    push_run(runs["classes"], "me/classes")
    before = {kind: draw(load_ensemble(run), 1, 2).numpy() for kind, run in runs.items()}
    read_only = [path for folder in exports.values() for path in (folder, *folder.rglob("*"))]
    for path in read_only:
        path.chmod(0o555 if path.is_dir() else 0o444)
    (exports["pixels"] / "unet" / "config.json").chmod(0o644)  # which the program damages at its end

    places = {**{kind: str(folder) for kind, folder in exports.items()}, "from-hub": "me/classes"}
    python = bare_python(tmp_path / "environment")
    env = {"HF_ENDPOINT": at_hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [python, "-I", "-c", STRANGER, tmp_path, str(CLASSES), json.dumps(places)]
    told = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert told.returncode == 0, told.stderr
    assert "might require the following packages" not in told.stderr
    for kind, samples in {**before, "from-hub": before["classes"]}.items():
        assert np.array_equal(np.load(tmp_path / f"{kind}.npy"), samples), kind
    no_saving, damage = told.stdout.splitlines()
    assert "Copy the folder" in no_saving
    assert "config.json: expected the file as it was exported" in damage
    for path in read_only:
        path.chmod(0o755)


def test_what_else_lies_beside_an_ensemble_is_not_given_along(tmp_path: Path) -> None:
    saved_ensemble(tmp_path / "run" / "ensemble")
    recorded_as_finished(tmp_path / "run", Plan())
    for place in ("mine.txt", "unet/mine.txt"):
        (tmp_path / "run" / "ensemble" / place).write_text("a token")
    export = export_run(tmp_path / "run", tmp_path / "export")
    assert not list(export.rglob("mine.txt"))
    load_ensemble(export)


def test_we_load_an_export_to_the_same_bits_and_notice_damage(
    runs: dict[str, Path], exports: dict[str, Path], tmp_path: Path
) -> None:
    for kind in ("packed", "VQModel", "drawings"):
        assert torch.equal(draw(load_ensemble(exports[kind]), 1, 2), draw(load_ensemble(runs[kind]), 1, 2))
    copy = Path(shutil.copytree(exports["packed"], tmp_path / "copy"))
    (copy / "README.md").write_text("Cards are edited on the hub.")
    load_ensemble(copy)
    with (copy / "ensemble_pipeline.py").open("a") as module:
        module.write("#")
    with pytest.raises(UserError, match=r"ensemble_pipeline\.py: expected the file as it was saved"):
        load_ensemble(copy)


def test_modules_are_what_our_sources_give_today_and_import_nothing_of_ours(
    runs: dict[str, Path], exports: dict[str, Path]
) -> None:
    for kind, run in runs.items():
        files = module_files(run / "ensemble")
        assert {path.relative_to(exports[kind]).as_posix() for path in exports[kind].rglob("*.py")} == set(files)
        for name, source in files.items():
            assert (exports[kind] / name).read_text() == source
            imported = {
                (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Import | ast.ImportFrom)
            }
            allowed = {"torch", "diffusers", "safetensors", "numpy", "PIL", *sys.stdlib_module_names}
            assert imported <= allowed, name
    assert vars(RasterStandIn()) == RasterPlan().model_dump()


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: (run / "ensemble/unet/0-260/config.json").write_text("{}"), "config.json: expected the file as"),
        (lambda run: shutil.rmtree(run / "ensemble"), "model_index.json: expected the file as"),
        (lambda run: (run / "manifest.json").unlink(), "no run here"),
        (lambda run: _extend(run), "expected a run that has its ensemble"),
    ],
)
def test_a_run_that_is_not_whole_is_not_exported(break_it: Any, said: str, tmp_path: Path) -> None:
    saved_ensemble(tmp_path / "run" / "ensemble")
    recorded_as_finished(tmp_path / "run", Plan())
    break_it(tmp_path / "run")
    with pytest.raises(UserError, match=said):
        export_run(tmp_path / "run", tmp_path / "export")
    assert not (tmp_path / "export").exists()


def _extend(run: Path) -> None:
    """Ask for more steps, which are not made yet."""
    plan = Plan()
    longer = plan.training.model_copy(update={"steps": plan.training.steps + 1})
    Ledger(RunDirectory(run)).extend(plan.model_copy(update={"training": longer}))


def test_only_an_export_is_replaced_and_only_networks_with_code_here_are_exported(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    export_run(runs["pixels"], tmp_path / "export")
    export_run(runs["drawings"], tmp_path / "export")
    assert not (tmp_path / "export" / "ensemble_pipeline.py").exists()
    for taken in (runs["pixels"], runs["pixels"] / "ensemble"):
        with pytest.raises(UserError, match="expected a new or empty folder, or one that holds an export"):
            export_run(runs["pixels"], taken)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"expert_classes": ["mine.Net"]}')
    with pytest.raises(UserError, match=r"expert_classes = mine\.Net"):
        module_files(tmp_path)


def test_the_command_pushes_and_what_it_pushed_loads_by_its_name(
    runs: dict[str, Path], at_hub: Hub, tmp_path: Path
) -> None:
    words = ("push", str(runs["pixels"]), REPO, "--private", "--license", "cc0-1.0", "--message", "First")
    code, said = _ebdiff(*words, url=at_hub.url, cache=tmp_path, token=TOKEN)
    assert (code, at_hub.private[REPO], at_hub.messages[-1]) == (0, True, "First"), said
    assert f"{at_hub.url}/{REPO}/commit/{at_hub.branches[REPO]['main']}" in said
    assert TOKEN not in said
    code, refused = _ebdiff(*words, url=at_hub.url, cache=tmp_path, token="hf_unknown")
    assert (code, "HF_TOKEN = ...: expected a token that the hub knows" in refused) == (2, True), refused
    assert "hf_unknown" not in refused
    card = at_hub.files(REPO)["README.md"].decode()
    assert "license: cc0-1.0" in card
    assert f"from_pretrained('{REPO}', trust_remote_code=True)" in card
    assert torch.equal(draw(load_ensemble(REPO), 1, 2), draw(load_ensemble(runs["pixels"]), 1, 2))

    first = at_hub.branches[REPO]["main"]
    push_run(runs["drawings"], REPO, revision="drawings")
    assert "ensemble_pipeline.py" not in at_hub.files(REPO, "drawings")  # with which the branch began
    HfApi().upload_file(path_or_fileobj=b"of an older run", path_in_repo="grid.png", repo_id=REPO)
    push_run(runs["pruned"], REPO)
    assert "grid.png" not in at_hub.files(REPO)
    assert {name.split("/")[1] for name in at_hub.files(REPO) if name.endswith(".safetensors")} == set(PRUNED_NAMES)
    for revision, kind in (("drawings", "drawings"), (first, "pixels"), (None, "pruned")):
        assert torch.equal(draw(load_ensemble(REPO, revision=revision), 1, 2), draw(load_ensemble(runs[kind]), 1, 2))


def test_what_is_on_the_hub_is_sampled_by_its_name_also_by_workers(
    runs: dict[str, Path], at_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_run(runs["pixels"], "me/sampled")
    push_run(runs["drawings"], "me/sampled", revision="drawings")
    monkeypatch.chdir(tmp_path)
    expected = sample_here(SampleJob(str(runs["pixels"]), 2, 1), print).samples
    words = ("sample", "me/sampled", "--revision", "main", "-n", "2", "--batch-size", "1", "--out", "drawn")
    code, said = _ebdiff(*words, url=at_hub.url, cache=tmp_path, token=TOKEN)
    assert (code, "2 images and grid.png in drawn" in said) == (0, True), said
    for number, pixels_HWC in enumerate(expected):
        assert np.array_equal(np.asarray(Image.open(f"drawn/0000{number}.png")), pixels_HWC[..., 0])
    job = SampleJob("me/sampled", 2, 1)
    assert np.array_equal(sample_on_workers(job, 2, None, View(), ThisProcess()).samples, expected)
    assert len(sample_here(replace(job, revision="drawings"), print).samples[0]) > 0
    for wrong, reason in (
        (replace(job, ensemble="none"), "path = none: expected an ensemble"),
        (SampleJob(str(runs["pixels"]), 1, 1, revision="v1"), "revision = v1: expected None"),
    ):
        with pytest.raises(UserError, match=reason):
            sample_here(wrong, print)
    code, said = _ebdiff("sample", "me/none", "--out", "refused", url=at_hub.url, cache=tmp_path, token=TOKEN)
    reason = "path = me/none: expected an ensemble's folder, a run directory, or the name of an ensemble on the hub"
    assert (code, reason in " ".join(said.split()), Path("refused").exists()) == (2, True, False), said


@pytest.mark.parametrize(
    ("repo", "license_id", "token", "refuse", "kind", "said"),
    [
        (REPO, None, None, None, UserError, "HF_TOKEN = nothing"),
        ("others/model", None, TOKEN, None, UserError, "expected a repository that you may write to (403"),
        ("model", None, TOKEN, None, UserError, "expected owner/name"),
        ("me/new", "none-such", TOKEN, None, UserError, "must be one of"),
        ("me/new", "two\nlines", TOKEN, None, UserError, "--license"),
        ("me/new", None, TOKEN, 500, RunFailed, "the hub did not take it"),
    ],
)
def test_what_the_hub_refuses_is_told_and_leaves_nothing_there(
    repo: str, license_id: str | None, token: str | None, refuse: int | None, kind: type[Exception], said: str,
    runs: dict[str, Path], at_hub: Hub, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(at_hub, "refuse", refuse)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    before = dict(at_hub.branches)
    with pytest.raises(kind, match=re.escape(said)):
        push_run(runs["pixels"], repo, license_id)
    assert at_hub.branches == before


def test_without_a_hub_or_such_a_repository_there_is_a_reason(
    runs: dict[str, Path], at_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_run(runs["pixels"], "me/public")
    with pytest.raises(UserError, match="--private = me/public: expected a new or a private repository"):
        push_run(runs["pixels"], "me/public", private=True)
    for name, revision in (("me/nothing", None), ("me/public", "v9")):
        with pytest.raises(UserError, match=r"the hub gives none .*Not Found"):
            load_ensemble(name, revision=revision)
    with pytest.raises(UserError, match="revision = v1: expected None"):
        load_ensemble(runs["pixels"], revision="v1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunFailed, match="the hub did not take it"):
        push_run(runs["pixels"], "me/public")
    with pytest.raises(UserError, match=r"the hub gives none .*refused"):
        load_ensemble("me/nothing")


def test_what_is_loaded_runs_no_code_of_the_repository(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = export_run(runs["pruned"], tmp_path / "export")
    config = folder / "unet" / "config.json"
    values = json.loads(config.read_text())
    evil = f"open({str(tmp_path / 'ran')!r}, 'w')"
    for module in folder.rglob("*.py"):
        module.write_text(evil)
    for name in ("os.system", "timestep_router.TimestepRouter", "diffusers.DiffusionPipeline", None):
        config.write_text(json.dumps({**values, "expert_classes": [name] * len(PRUNED_NAMES)} if name else values))
        for sealed in (folder / "unet", folder):  # as whoever owns the repository can
            seal_folder(sealed)
        if name is None:
            load_ensemble(folder)
        else:
            with pytest.raises(UserError, match=f"expert_classes = {name}"):
                load_ensemble(folder)
    assert not (tmp_path / "ran").exists()


def test_a_card_says_what_is_known_and_nothing_of_the_machine(tiny_plan: MakePlan, tmp_path: Path) -> None:
    plan = tiny_plan(f"data.path={tmp_path}/secret/x](http:evil) <script>alert(1)<script> `| photos")
    manifest = recorded_as_finished(tmp_path, plan)
    found = an_evaluation(num_images=1000, fid=12.345, ensemble_digest=ensemble_digest(manifest))
    card = model_card(manifest.model_copy(update={"evaluations": {"k": found}}), "me/it", None, has_grid=True)
    metadata = ModelCard(card).data
    assert (metadata.license, metadata.datasets, metadata.library_name) == (None, None, "diffusers")
    for hidden in ("<script>", "x](http", "secret", str(tmp_path)):
        assert hidden not in card
    regions = [f"`{region.name}`" for region in plan.regions]
    for shown in ("\\`\\| photos", "12.3", "1,000", "Licence\n\nNone is stated", *regions):
        assert shown in card
    card = model_card(manifest, "me/it", "mit", has_grid=False)
    assert ModelCard(card).data.license == "mit"
    assert "The weights: mit." in card
    assert "Nothing was measured" in card

    of_the_hub = ("data.path=someone/pictures", "model.num_classes=10", "data.label_column=label")
    for changes, datasets, call in (
        (of_the_hub, ["someone/pictures"], "class_labels=0"),
        (VECTOR, None, "drawings = pipeline(batch_size=4).drawings"),
    ):
        manifest = Ledger.begin(RunDirectory(tmp_path / call), tiny_plan(*changes)).manifest
        card = model_card(manifest, "me/it", "mit", has_grid=False)
        assert (ModelCard(card).data.datasets, call in card) == (datasets, True)
