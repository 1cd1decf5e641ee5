"""No file is unpickled, whatever the project loads: with every unpickler broken, all of its reading still works."""

import ast
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_run import expert_files, finished_run
from local_inception import write_local_inception
from places import DENSE, plan_of, png
from small_training import job_of, small_plan

from ebdiff_orchestrator.evaluation import evaluate as evaluating
from ebdiff_orchestrator.evaluation import inception
from ebdiff_orchestrator.evaluation.extractors import choose_extractor
from ebdiff_orchestrator.evaluation.inception import FEATURES, load_inception
from ebdiff_orchestrator.evaluation.reference import given_reference
from ebdiff_orchestrator.evaluation.statistics import Statistics, write_statistics
from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.plans.preview import preview_plan
from ebdiff_orchestrator.reports.masks import recorded_masks
from ebdiff_orchestrator.run.finishing import assemble, sample
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.data.store import ensure_store
from region_workers.networks.pretrained import find_dense
from region_workers.storage.integrity import file_digest
from region_workers.worker.run import run_job
from schemas.evaluation import Measure
from schemas.manifest import Manifest
from schemas.plan import DataPlan

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "region_workers", "ebdiff_orchestrator")
READS_TORCH_FILES = "ebdiff_orchestrator/evaluation/inception.py"  # pytorch-fid's weights come as a .pth


class Unpickled(BaseException):
    """Something was unpickled; nobody catches it by accident."""


def _refuse(*_: object, **__: object) -> None:
    raise Unpickled


class _RefusingUnpickler(pickle._Unpickler):  # type: ignore[misc, name-defined]
    def __init__(self, *_: object, **__: object) -> None:
        raise Unpickled


@pytest.fixture
def no_unpickling(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every name by which a loaded module knows an unpickler, or torch.load, raises."""
    functions: list[Any] = [pickle.load, pickle.loads, pickle._load, pickle._loads, torch.load]  # type: ignore[attr-defined]
    classes: list[Any] = [pickle.Unpickler, pickle._Unpickler]  # type: ignore[attr-defined]
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if any(value is function for function in functions):
                monkeypatch.setattr(module, name, _refuse)
            elif any(value is kind for kind in classes):
                monkeypatch.setattr(module, name, _RefusingUnpickler)
    yield
    monkeypatch.undo()


def test_the_broken_unpicklers_are_those_that_would_be_used(
    no_unpickling: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object))
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pth")
    monkeypatch.setattr(inception, "OFFICIAL_SHA256", file_digest(tmp_path / "weights.pth"))
    attempts: tuple[Callable[[], object], ...] = (
        lambda: pickle.loads(pickle.dumps(1)),  # noqa: S301
        lambda: np.load(tmp_path / "objects.npy", allow_pickle=True),
        lambda: torch.load(tmp_path / "weights.pth", weights_only=True),
        lambda: load_inception(tmp_path / "weights.pth", torch.device("cpu")),
    )
    for attempt in attempts:
        with pytest.raises(Unpickled):
            attempt()


def test_a_run_is_planned_trained_resumed_assembled_and_sampled_without_unpickling(
    no_unpickling: None, tmp_path: Path
) -> None:
    for index in range(12):
        png(tmp_path / f"images/{index}.png", seed=index)
    preview_plan(load_plan("digits"))
    data = {"path": str(tmp_path / "images")}
    run_dir, cache = tmp_path / "run", tmp_path / "cache"
    run_dir.mkdir()
    plan = small_plan(data=data, workers={"cache_dir": str(cache)})
    run_job(job_of(plan, run_dir, cache))
    further = small_plan(
        data=data, workers={"cache_dir": str(cache)}, training={**plan.training.model_dump(), "steps": 6}
    )
    run_job(job_of(further, run_dir, cache))  # from the checkpoint of the fourth step
    Ledger.begin(RunDirectory(run_dir), further)
    assemble(further, str(run_dir), expert_files(run_dir, further), None)
    sample(further, str(run_dir))
    assert (run_dir / "samples" / "grid.png").is_file()
    assert len(recorded_masks(RunDirectory(run_dir), further)[0]) == 2


def test_a_run_starts_from_a_network_and_is_evaluated_without_unpickling(
    tmp_path: Path, cache_dir: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run(tmp_path / "run", plan_of(**DENSE))
    write_local_inception(tmp_path / "inception.safetensors")
    ones = Statistics(np.ones(FEATURES), np.eye(FEATURES), 4)
    write_statistics(tmp_path / "reference.npz", ones)
    monkeypatch.setattr(evaluating, "frechet_distance", lambda *_: 1.0)  # reads nothing, and takes half a minute

    request.getfixturevalue("no_unpickling")
    find_dense(str(tmp_path / "run" / "ensemble")).load(dropout=0.0, side=8)
    measured = evaluating.evaluate(
        tmp_path / "run",
        4,
        steps=2,
        inception_weights=tmp_path / "inception.safetensors",
        reference=tmp_path / "reference.npz",
        in_process=True,
    )
    assert measured.num_images == 4
    measure = Measure(extractor=choose_extractor("inception", tmp_path / "inception.safetensors"))
    assert given_reference(tmp_path / "reference.npz", tmp_path, measure).num_images == 4
    assert Manifest.model_validate_json((tmp_path / "run" / "manifest.json").read_bytes()).evaluations
    store = ensure_store(DataPlan(), cache_dir)
    assert len(store.piece(0, len(store))) == len(store)


def _calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, ast.expr]]]:
    """Every call, as it is written, with its keyword arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: word.value for word in node.keywords if word.arg is not None}


def _is(value: ast.expr | None, wanted: bool) -> bool:
    return isinstance(value, ast.Constant) and value.value is wanted


def test_no_code_asks_for_a_pickle() -> None:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 100
    readers = []
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        for function, options in _calls(ast.parse(file.read_text())):
            last = function.rpartition(".")[2]
            assert last not in ("loads", "Unpickler") or function == "json.loads", f"{name}: {function}"
            assert not function.startswith(("pickle.", "dill.", "joblib.", "shelve.", "cloudpickle.")), name
            if function == "torch.load":
                assert _is(options.get("weights_only"), True), f"{name}: torch.load without weights_only=True"
                readers.append(name)
            if function == "np.load":
                assert _is(options.get("allow_pickle"), False), f"{name}: np.load without allow_pickle=False"
            if last == "from_pretrained" and "use_safetensors" in options:
                assert _is(options["use_safetensors"], True), f"{name}: from_pretrained of a pickle"
    assert readers == [READS_TORCH_FILES]
