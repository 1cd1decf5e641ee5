"""The run directory: the same experiment goes on, another one is refused, and what is not of a run is left alone."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import MakePlan

from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.manifests import differences
from ebdiff_orchestrator.run.run_directory import RunDirectory
from schemas.errors import UserError, command
from schemas.manifest import RAY_LOG, Manifest
from schemas.plan import Plan


def _begun(directory: RunDirectory, plan: Plan) -> Manifest:
    """A run in which a job has started."""
    return directory.write(Ledger.begin(directory, plan).manifest.model_copy(update={"attempts": 1}))


def test_a_run_in_which_nothing_began_gives_way_to_another_experiment(tiny_plan: MakePlan, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    Ledger.begin(directory, tiny_plan())
    assert Ledger.begin(directory, tiny_plan("seed=4")).manifest.plan.seed == 4


@pytest.mark.parametrize("name", ["plain", "my runs", "it's; $HOME", "Bücher", "-x"])
def test_a_command_that_is_suggested_can_be_pasted(
    name: str, tiny_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = RunDirectory(name)
    _begun(directory, tiny_plan())
    for changes, words in ((["seed=4"], []), (["training.steps=20"], ["--set", "training.steps=20"])):
        with pytest.raises(UserError) as caught:
            Ledger.begin(directory, tiny_plan(*changes))
        suggested = re.findall(r"ebdiff (?:resume|extend) .*", str(caught.value))
        assert shlex.split(suggested[0])[2:] == [str(tmp_path / name), *words]
    pasted = subprocess.run(["sh", "-c", f"printf '%s\n' {command('resume', name)}"], capture_output=True, text=True)
    assert pasted.stdout.splitlines() == ["ebdiff", "resume", f"./{name}" if name == "-x" else name]


def test_other_workers_and_logging_take_effect_in_the_same_run(tiny_plan: MakePlan, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    created = _begun(directory, tiny_plan()).created_at
    Ledger.begin(directory, tiny_plan("workers.gpus=0.5", "logging.interval_steps=9"))
    manifest = directory.read()
    assert manifest.created_at == created
    assert manifest.plan.workers.gpus == 0.5


def test_what_ray_said_before_a_refusal_goes_with_the_run_and_is_never_in_the_way(
    tiny_plan: MakePlan, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")

    def refuse() -> None:
        with directory.held(print):
            Ledger.begin(directory, tiny_plan())
            with directory.discarded_if_refused():
                (directory.path / RAY_LOG).write_text("a line of Ray's\n")
                raise UserError("too large")

    with pytest.raises(UserError, match="too large"):
        refuse()
    assert not directory.path.exists()
    directory.path.mkdir()
    (directory.path / RAY_LOG).write_text("a line of Ray's\n")
    with directory.held(print):
        Ledger.begin(directory, tiny_plan())


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["photo.png"], "photo.png"),
        (["samples/mine.png", "ensemble/a", "a/b/c", "d", "e", "f", "g"], "a, d, e, ensemble, f and 2 more"),
        ([".partial-thesis"], ".partial-thesis"),
        ([".owners/notes.json", "ray.log/mine"], ".owners/notes.json, ray.log"),
    ],
)
def test_a_folder_with_somebody_s_files_is_refused_and_left_alone(tmp_path: Path, files: list[str], named: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("mine")
    refusal = re.escape(f"but it holds {named}, and no run.")
    with pytest.raises(UserError, match=refusal), RunDirectory(tmp_path).held(print):
        pytest.fail("it took the folder for its own")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(files)


_PARTIAL = ".partial-0123456789ab"


@pytest.mark.parametrize(
    "files",
    [
        [f".owners/{_PARTIAL}-00000001-abcdabcd.json", ".owners/.lock"],
        [f"{_PARTIAL}-manifest.json", "ray.log"],
        [".owners/00000001-abcdabcd.json", "draw/a/result.json", "samples/grid.png"],  # it lost its manifest
    ],
)
def test_what_a_launch_of_ours_left_is_no_obstacle(tiny_plan: MakePlan, tmp_path: Path, files: list[str]) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    directory = RunDirectory(tmp_path)
    with directory.held(print, take_over=True):
        Ledger.begin(directory, tiny_plan())
    assert directory.exists()


def test_differences_name_nested_fields_and_list_positions() -> None:
    old, new = {"a": {"b": 1}, "c": [1, 2]}, {"a": {"b": 2}, "c": [1, 3]}
    assert differences(old, new) == ["a.b: 1 -> 2", "c.1: 2 -> 3"]
