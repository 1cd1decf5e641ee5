"""Studies: which runs may begin, what a file may hold, and workers that several runs share."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import pytest
import yaml
from conftest import TINY, MakeJobs, MakePlan
from finished_run import recorded_as_finished
from processes import wait_until
from typer.testing import CliRunner

from ebdiff_orchestrator.cli.app import app
from ebdiff_orchestrator.cluster.executor import Request, ThisProcess
from ebdiff_orchestrator.cluster.ray_executor import RayExecutor
from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.plans.preset_plans import studies
from ebdiff_orchestrator.run.launch import launch
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.ownership import claim_run
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.study.decide import Standing, StudyRun, next_run, runs_of
from ebdiff_orchestrator.study.load import load_study, plan_of, write_study
from ebdiff_orchestrator.study.results import (
    RowResult,
    Spread,
    StudyResults,
    _with_equal_costs,
    results_table,
    study_results,
)
from ebdiff_orchestrator.study.run_study import run_study
from ebdiff_orchestrator.study.workers import LentWorkers, SharedWorkers
from region_workers.storage.run_files import RunFiles
from schemas.errors import PlanError, UserError
from schemas.job import WorkerJob
from schemas.plan import Plan

# --- which runs may begin ---------------------------------------------------------------------------------------------

D0, D1, T0, S0 = (("draw/a", "0"), ("draw/a", "1"), ("train/a", "0"), ("train/a", "s"))


def _run(name: str, stages: dict[Any, int], start: str | None = None) -> StudyRun:
    return StudyRun(name, name, Plan(), start, stages)


RUNS = (
    _run("dense", {D0: 0, T0: 100}),
    _run("longer", {D0: 0, T0: 200}),
    _run("shorter", {D0: 0, T0: 50}),
    _run("other", {D1: 0}),
    _run("from dense", {S0: 10}, start="dense"),
)
DRAWN, TRAINED = frozenset({"draw/a"}), frozenset({"draw/a", "train/a"})
CASES: list[tuple[str, dict[str, Any], str | None]] = [
    ("the first begins", {}, "dense"),
    ("nothing without room", {"has_room": False}, None),
    ("what shares with one at work waits, others overtake", {"at_work": {"dense"}}, "other"),
    ("a drawn ticket is all that a shorter training waits for", {"at_work": {"dense"}, "done": DRAWN}, "shorter"),
    ("a training goes on from an equal shorter one", {"at_work": {"dense", "shorter"}, "done": TRAINED}, "longer"),
    ("what is finished is waited for no more", {"finished": {"dense"}}, "longer"),
    ("nor what has failed", {"failed": {"dense"}}, "longer"),
    (
        "a start that is finished lets others begin",
        {"finished": {"dense"}, "at_work": {"longer", "shorter", "other"}},
        "from dense",
    ),
    ("a start at work does not", {"at_work": {"dense", "other"}}, None),
    ("nor one of a failed start", {"failed": {"dense"}, "at_work": {"longer", "shorter", "other"}}, None),
]


@pytest.mark.parametrize(("told", "begin"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_run_begins_when_nothing_is_to_be_waited_for(told: dict[str, Any], begin: str | None) -> None:
    done = {"dense": told.pop("done", frozenset()), "shorter": TRAINED}
    standing = Standing(**{key: value if key == "has_room" else frozenset(value) for key, value in told.items()})
    found = next_run(RUNS, Standing(**{**vars(standing), "done_stages": done}))
    assert found.begin == begin
    assert set(found.give_up) == ({"from dense"} if "failed" in told else set())
    assert not found.over


def test_a_study_is_over_when_nothing_is_open_or_at_work() -> None:
    names = frozenset(run.name for run in RUNS)
    assert next_run(RUNS, Standing(finished=names)).over
    assert not next_run(RUNS, Standing(finished=names - {"other"}, at_work=frozenset({"other"}))).over


# --- files ------------------------------------------------------------------------------------------------------------


def test_studies_of_the_package_can_run_as_written(tmp_path: Path) -> None:
    for name in studies():
        study = load_study(name)
        assert study.name == name
        assert len(runs_of(study, tmp_path)) == len(study.rows) * len(study.seeds)


def test_rows_of_the_paper_that_share_experts_share_their_runs(tmp_path: Path) -> None:
    runs = {run.label: run for run in runs_of(load_study("table-8"), tmp_path)}
    assert runs["30-40-80"].takes_from(runs["30-60-80"]) == {
        f"{k}/{r}" for k in ("draw", "train") for r in ("0-260", "440-1000")
    }


ROW = {"label": "a", "plan": "digits"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"rows": []}, "rows = []: expected a list of at least 1"),
    ({"rows": [{"label": "a", "plan": "digits", "colour": 1}]}, "rows.0.colour"),
    ({"rows": [{"label": "a b", "plan": "digits"}, {"label": "A-B", "plan": "digits"}]}, "rows.1.label = A-B"),
    ({"rows": [{"label": "a", "plan": "digits", "start": "b"}]}, "rows.0.start = b: expected another row's label"),
    ({"rows": [{"label": "a", "plan": "digits", "start": "a"}]}, "rows.0.start = a: expected another row's label"),
    ({"rows": [{"label": "a", "plan": "digitz"}]}, "row a: PLAN = digitz"),
    ({"rows": [{"label": "a", "plan": "digits", "set": ["training.steps=x"]}]}, "training.steps = x"),
    ({"seeds": [1, 1]}, r"seeds = [1, 1]: expected each seed once"),
    ({"seeds": 0}, "seeds = 0: expected 1 or more, or a list of seeds"),
    ({"seed": 3}, "seed = 3: expected a key that studies have. Did you mean seeds? See docs/studies.md."),
    (
        {"rows": [{"plan": "digits"}]},
        "as written:\n  - rows.0.label is missing: expected a value. Add it to the study's",
    ),
    (
        {"rows": [{"label": "a", "plan": "digits"}, {"label": "b", "plan": "digits", "set": ["workers.cpus=2"]}]},
        "row b",
    ),
]


@pytest.mark.parametrize(("values", "said"), BAD)
def test_a_study_that_cannot_run_says_why(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump({"rows": [ROW], **values}))
    with pytest.raises(PlanError, match=re.escape(said)):
        load_study(file)
    assert list(tmp_path.iterdir()) == [file]


def test_a_change_of_a_row_is_none_of_another_with_the_same_anchor(tmp_path: Path) -> None:
    rows = ("{label: a, plan: &same {training: {steps: 500}}, set: [training.steps=10]}", "{label: b, plan: *same}")
    (tmp_path / "study.yaml").write_text(f"rows: [{', '.join(rows)}]")
    found = load_study(tmp_path / "study.yaml")
    assert {row.label: plan_of(row).training.steps for row in found.rows} == {"a": 10, "b": 500}


def test_what_a_study_names_here_it_names_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "weights.pth").touch()
    here = {"set": ["data.path=photos"], "evaluate": {"inception_weights": "weights.pth"}}
    (tmp_path / "here.yaml").write_text(yaml.safe_dump({"rows": [ROW], **here}))
    monkeypatch.chdir(tmp_path)
    write_study(load_study("here.yaml"), tmp_path / "study")
    monkeypatch.chdir("/")
    found = load_study(tmp_path / "study")
    assert found.evaluate is not None
    assert found.evaluate.inception_weights == str(tmp_path / "weights.pth")
    assert plan_of(found.rows[0]).data.path == str(tmp_path / "photos")


def test_a_second_command_on_a_study_is_told_of_the_first(tmp_path: Path) -> None:
    owner = claim_run(RunFiles(tmp_path), say=print)
    study = load_study("small")
    with pytest.raises(UserError, match=f"--study-dir = {tmp_path}: expected no other command .*process {os.getpid()}"):
        run_study(study, tmp_path, executor=ThisProcess())
    owner.release()


def test_a_study_and_a_run_have_folders_of_their_own(tiny_plan: MakePlan, tmp_path: Path) -> None:
    Ledger.begin(RunDirectory(tmp_path / "run"), tiny_plan())
    study = load_study("small")
    with pytest.raises(UserError, match="a folder for a study alone, but a run is there"):
        run_study(study, tmp_path / "run", executor=ThisProcess())
    write_study(study, tmp_path / "study")
    claim_run(RunFiles(tmp_path / "study"), say=print).release()
    with pytest.raises(UserError, match="a folder for a run alone, but a study is there"):
        launch(tiny_plan(), tmp_path / "study", executor=ThisProcess())
    with pytest.raises(UserError, match=f"it is a study, which `ebdiff study {tmp_path}/study --table` shows"):
        RunDirectory(tmp_path / "study").read()
    with pytest.raises(PlanError, match=f"it is a study; .* Start it as one: ebdiff study {tmp_path}/study"):
        load_plan(str(tmp_path / "study"))


def test_the_command_lists_studies_and_refuses_an_unknown_one() -> None:
    assert "study small" in CliRunner().invoke(app, ["presets"]).output
    found = CliRunner().invoke(app, ["study", "smal"])
    assert isinstance(found.exception, PlanError)
    assert "small" in str(found.exception)
    found = CliRunner().invoke(app, ["study", "small", "--table", "--study-dir", "nosuch"])
    assert "--study-dir = nosuch: expected a study that was begun" in str(found.exception)


# --- workers that several runs share ----------------------------------------------------------------------------------


class _Jobs(RayExecutor):
    """Jobs of a Ray that is not there: what is told of them is kept."""

    def __init__(self) -> None:
        super().__init__(False, Request(1, 1.0, 0.0))
        self.started: dict[str, Future[None]] = {}

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        self.started[job.name] = Future()
        return self.started[job.name]

    def cancel(self, job_name: str) -> None:
        self.started[job_name].set_exception(RuntimeError("cancelled"))


def test_jobs_of_one_name_in_two_runs_are_two_jobs(make_jobs: MakeJobs, tiny_plan: MakePlan, tmp_path: Path) -> None:
    inner = _Jobs()
    shared = SharedWorkers(inner)
    one, two = LentWorkers("one-s0", shared), LentWorkers("two-s0", shared)
    job = make_jobs(tiny_plan(), tmp_path / "run")[0]
    futures = [lent.run_job(job, 1) for lent in (one, two)]
    assert len(inner.started) == 2
    assert (one.others_at_work(), two.others_at_work()) == (True, True)
    futures[0].set_result(None)
    assert (one.others_at_work(), two.others_at_work()) == (True, False)
    shared.end_jobs(limit_s=5.0)
    assert [type(future.exception()) for future in futures] == [type(None), RuntimeError]
    assert not one.others_at_work()


class _Busy(_Jobs):
    """Two workers are free; `told` is how many a waiting run is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.told = 0

    def free_workers(self) -> int:
        return 2 if current_thread() is main_thread() else self.told

    def run_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        return iter(enumerate(function(*call) for call in calls))


def test_a_run_that_waits_to_be_finished_or_measured_goes_before_jobs(
    make_jobs: MakeJobs, tiny_plan: MakePlan, tmp_path: Path
) -> None:
    inner = _Busy()
    shared = SharedWorkers(inner)
    trains, ends = LentWorkers("one-s0", shared), LentWorkers("two-s0", shared)
    trains.run_job(make_jobs(tiny_plan(), tmp_path / "run")[0], 1)
    assert (trains.free_workers(), shared.has_room(1)) == (2, True)
    with ThreadPoolExecutor(2) as others:
        measuring = [others.submit(lambda: list(ends.run_many(str, [(1,)]))) for _ in range(2)]
        wait_until(lambda: not trains.free_workers(), "the workers to be lent", look_s=0.01)
        assert (trains.free_workers(), shared.has_room(1)) == (0, False)
        inner.told = 1
        assert [each.result(timeout=30) for each in measuring] == [[(0, "1")]] * 2
    assert (trains.free_workers(), shared.has_room(1)) == (2, True)


def test_a_run_takes_no_worker_that_one_before_it_waits_for() -> None:
    shared = SharedWorkers(_Busy())
    first, second, third = (LentWorkers(f"{name}-s0", shared) for name in ("one", "two", "three"))
    second.note_waiting(True)
    assert [run.free_workers() for run in (first, second, third)] == [2, 2, 0]
    assert not shared.has_room(3)
    second.note_waiting(False)
    assert [run.free_workers() for run in (first, second, third)] == [2, 2, 2]
    assert shared.has_room(3)


# --- the table --------------------------------------------------------------------------------------------------------


def test_costs_are_in_steps_of_the_first_rows_dense_network(tmp_path: Path) -> None:
    """Also where the row starts from another, which then is run first, as is one of another size."""
    dense = {**TINY, "regions": [{"train": [0, 1000], "pruning_ratio": 0.0, "name": "all"}]}
    small = {**dense, "model": {**TINY["model"], "block_out_channels": [8, 16]}}
    rows = [
        {"label": "tuned", "plan": dense, "start": "big"},
        {"label": "small", "plan": small},
        {"label": "big", "plan": dense},
    ]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"rows": rows}))
    study = load_study(tmp_path / "mine.yaml")
    write_study(study, tmp_path / "mine")
    for run in runs_of(study, tmp_path / "mine"):
        if run.start is None:
            directory = RunDirectory(tmp_path / "mine" / run.name)
            manifest = recorded_as_finished(directory.path, run.plan)
            directory.write(manifest.with_stage(manifest.stage("train/all").model_copy(update={"steps": 12})))
    _, small_row, big = study_results(tmp_path / "mine").rows
    assert big.dense_steps == Spread(12, None, 1)
    assert small_row.dense_steps is not None
    assert small_row.dense_steps.mean < 6


@pytest.mark.parametrize(("deviation", "said"), [(None, ""), (0.0123, " ± 0.012"), (99, " ± 99"), (1234.5, " ± 1,234")])
def test_a_deviation_is_told_without_an_exponent(deviation: float | None, said: str) -> None:
    row = RowResult("a", (), {}, Spread(12_345, deviation, 0), None)
    ((_, _, cell, *_),) = results_table(StudyResults("mine", (row,), (), (), ())).rows
    assert cell == f"12,345{said}"


def test_equal_cost_is_marked_and_a_deviation_is_of_a_sample() -> None:
    rows = [RowResult(str(cost), (), {}, Spread.of([cost]), None) for cost in (100.0, 104.0, 106.0, 300.0, 310.0)]
    assert [row.equal_cost for row in _with_equal_costs(rows)] == ["a", "a", "", "b", "b"]
    assert Spread.of([1.0, None, 3.0]) == Spread(2.0, 2**0.5, 2)
    assert Spread.of([None]) is None
