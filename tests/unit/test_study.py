"""Studies: which runs may begin, what a folder goes on with, and a small one from its start to its table."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY
from rich.console import Console
from serial_cluster import SerialCluster
from typer.testing import CliRunner

from ebdiff_orchestrator.cli.app import app
from ebdiff_orchestrator.cluster.executor import Request
from ebdiff_orchestrator.cluster.ray_executor import RayExecutor
from ebdiff_orchestrator.plans.preset_plans import studies
from ebdiff_orchestrator.reports.formats import as_markdown, print_table
from ebdiff_orchestrator.run.interrupts import RunStopped
from ebdiff_orchestrator.run.manifests import new_manifest
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.study.decide import Standing, StudyRun, next_run, runs_of
from ebdiff_orchestrator.study.load import load_study
from ebdiff_orchestrator.study.progress import Board, Seen, board_of
from ebdiff_orchestrator.study.report import leave_study_report
from ebdiff_orchestrator.study.results import study_results
from ebdiff_orchestrator.study.run_study import run_study
from ebdiff_orchestrator.study.table import plot_results, results_table
from ebdiff_orchestrator.study.view import StudyTable, StudyView
from ebdiff_orchestrator.study.workers import LentWorkers, SharedWorkers
from schemas.errors import PlanError, RunFailed, UserError
from schemas.job import Progress, WorkerJob
from schemas.plan import Plan
from schemas.process import unix_time
from tests.unit.test_report_page import Page

QUICK = ["training.steps=4", "draw.threshold=1.0", "sampling.num_images=2", "sampling.steps=2"]
DENSE = {"train": [0, 1000], "pruning_ratio": 0.0, "name": "all"}
HALF = {**DENSE, "pruning_ratio": 0.5}

WriteStudy = Callable[..., Path]


def _tiny(**sections: Any) -> dict[str, Any]:
    plan = {name: value for name, value in copy.deepcopy(TINY).items() if name != "name"}
    return {**plan, **sections}


def _study(rows: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    return {"name": "trial", "seeds": 2, "set": QUICK, "rows": rows, "evaluate": None, **values}


@pytest.fixture
def write_study(tmp_path: Path) -> WriteStudy:
    """Writes a study's file."""

    def write(rows: list[dict[str, Any]], **values: Any) -> Path:
        file = tmp_path / "trial.yaml"
        file.write_text(yaml.safe_dump(_study(rows, **values)))
        return file

    return write


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


# --- how far it is ----------------------------------------------------------------------------------------------------

EB = Plan.model_validate(
    {"regions": [{**HALF, "name": "a"}], "draw": {"interval_steps": 10, "max_intervals": 5}, "training": {"steps": 200}}
)
EBS = tuple(
    StudyRun(
        f"{label}-s{seed}",
        label,
        EB.model_copy(update={"seed": seed}),
        None,
        {draw: 0, ("train/a", f"{label}{seed}"): 200},
    )
    for seed, draw in enumerate((D0, D1))
    for label in ("eb", "more")
)


def _seen(draw: int = 0, train: int = 0, seconds: float = 0.0, **reports: Progress) -> Seen:
    """A run whose stages of so many steps are done, each in so many seconds."""
    manifest = new_manifest(EB)
    for name, steps in (("draw/a", draw), ("train/a", train)):
        done = {"status": "done", "steps": steps, "active_s": seconds} if steps else {}
        manifest = manifest.with_stage(manifest.stage(name).model_copy(update=done))
    return Seen(manifest, {report.stage: report for report in reports.values()})


AT_WORK = Progress(stage="train/a", step=50, steps_per_s=2.0)
DRAWS = Progress(stage="draw/a", step=10, steps_per_s=1.0)
BOARDS: list[tuple[str, dict[str, Any], dict[str, Seen], list[str], float | None]] = [
    ("nothing is known", {}, {}, ["waits"] * 4, None),
    ("one begins", {"at_work": {"eb-s0"}}, {"eb-s0": _seen()}, ["starts", *["waits"] * 3], None),
    # two draws of 50 steps at most, for two rows each, and four trainings of 200; one worker, 1 s a step
    ("it draws", {"at_work": {"eb-s0"}}, {"eb-s0": _seen(r=DRAWS)}, ["draws", *["waits"] * 3], 90 + 4 * 200),
    ("it trains", {"at_work": {"eb-s0"}}, {"eb-s0": _seen(20, 0, 20, r=AT_WORK)}, ["25%", *["waits"] * 3], 20 + 375),
    ("it is done", {"finished": {"eb-s0"}}, {"eb-s0": _seen(20, 200, 20)}, ["done", *["waits"] * 3], 20 + 60),
    ("it failed", {"failed": {"eb-s0"}}, {"eb-s0": _seen(20, 0, 20)}, ["failed", *["waits"] * 3], 20 + 3 * 200),
    (
        "it is measured",
        {"finished": {"eb-s0"}, "at_work": {"eb-s0"}},
        {"eb-s0": _seen(20, 200, 20)},
        ["measures", *["waits"] * 3],
        20 + 60,
    ),
]


@pytest.mark.parametrize(("told", "known", "states", "left_s"), [b[1:] for b in BOARDS], ids=[b[0] for b in BOARDS])
def test_a_board_shows_each_run_and_what_is_left_of_all(
    told: dict[str, Any], known: dict[str, Seen], states: list[str], left_s: float | None
) -> None:
    standing = Standing(**{key: frozenset(names) for key, names in told.items()})
    seen = {run.name: known.get(run.name, Seen()) for run in EBS}
    board = board_of("trial", EBS, standing, seen, 1, True)
    first, second, third, fourth = states
    assert board.rows == {"eb": (first, third), "more": (second, fourth)}
    assert board.left_s == (None if left_s is None else pytest.approx(left_s))
    assert board_of("trial", EBS, standing, seen, 2, True).left_s == (left_s and pytest.approx(left_s / 2))


@pytest.mark.parametrize(("width", "height", "seeds"), [(80, 24, 3), (80, 12, 3), (80, 24, 12), (200, 50, 12)])
def test_a_live_view_of_many_runs_fits_the_terminal(width: int, height: int, seeds: int) -> None:
    console = Console(width=width, height=height, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    view = StudyTable(console)
    rows = {f"row {letter}": ("done", "37%", *["waits"] * (seeds - 2)) for letter in "abcdefghijk"}
    view.board(Board("trial", tuple(range(seeds)), rows | {"broken": ("failed",) * seeds}, 7200.0))
    view.job("row-a-s1 region all", AT_WORK.model_copy(update={"total_steps": 200, "updated_at": unix_time()}))
    console.print(view._render())
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) <= height
    assert "about 2:00:00 left" in " ".join(text.split())
    assert ("more rows" in text) == (height == 12)
    assert ("waiting  failed" in text) == (width == 80 and seeds == 12)
    assert "row-a-s1 region all" in text


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
    ({"seeds": 0}, "seeds"),
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


def test_the_command_lists_studies_and_refuses_an_unknown_one() -> None:
    assert "study small" in CliRunner().invoke(app, ["presets"]).output
    found = CliRunner().invoke(app, ["study", "smal"])
    assert isinstance(found.exception, PlanError)
    assert "small" in str(found.exception)


# --- workers that several runs share ----------------------------------------------------------------------------------


class _Jobs(RayExecutor):
    """Jobs of a Ray that is not there: what is told of them is kept."""

    def __init__(self) -> None:
        super().__init__(False, Request(1, 1.0, 0.0))
        self.started: dict[str, Future[None]] = {}

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        self.started[job.name] = Future()
        return self.started[job.name]


def test_jobs_of_one_name_in_two_runs_are_two_jobs(
    make_jobs: Callable[..., list[WorkerJob]], tiny_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    inner = _Jobs()
    shared = SharedWorkers(inner)
    one, two = LentWorkers("one-s0", shared), LentWorkers("two-s0", shared)
    job = make_jobs(tiny_plan(), tmp_path / "run")[0]
    futures = [lent.run_job(job, 1) for lent in (one, two)]
    assert len(inner.started) == 2
    assert (one.others_at_work(), two.others_at_work()) == (True, True)
    futures[0].set_result(None)
    assert (one.others_at_work(), two.others_at_work()) == (True, False)


# --- a whole study ----------------------------------------------------------------------------------------------------


class _Interrupting(SerialCluster):
    """Ctrl-C as job number `at` begins."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self._at = at

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        if len(self.jobs) + 1 == self._at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().run_job(job, workers)


class _Boards(StudyView):
    """A view that remembers how the study stood."""

    def __init__(self) -> None:
        self.boards: list[Board] = []

    def board(self, board: Board) -> None:
        self.boards.append(board)


ROWS = [
    {"label": "finetune", "plan": _tiny(regions=[HALF]), "set": ["draw.method=one-shot"], "start": "Dense"},
    {"label": "Dense", "plan": _tiny(regions=[DENSE])},
    {"label": "<i>longer</i>", "plan": _tiny(regions=[DENSE]), "set": ["training.steps=6"]},
    {"label": "broken", "plan": _tiny(regions=[HALF]), "set": ["data.path=<i>nothing.parquet"]},
]


def test_a_study_is_interrupted_goes_on_and_ends_in_a_table(write_study: WriteStudy, tmp_path: Path) -> None:
    measured = {"num_images": 4, "extractors": ["random-conv", "wavelet"]}
    study, folder = load_study(write_study(ROWS, evaluate=measured)), tmp_path / "runs"
    first, view = _Interrupting(at=3), _Boards()
    with pytest.raises(RunStopped, match="Go on with: ebdiff study"):
        run_study(study, folder, executor=first)
    assert len(first.jobs) == 3
    second = _Interrupting()
    with pytest.raises(RunFailed, match=r"2 of 8 runs failed(.|\n)*broken-s0: .*nothing.parquet"):
        run_study(study, folder, executor=second, view=view)
    assert view.boards[-1].counts == {"done": 6, "at work": 0, "waiting": 0, "failed": 2}
    assert len(first.jobs) + len(second.jobs) <= 7  # six trainings, one of them in two parts
    finetune = RunDirectory(folder / "finetune-s1").read()
    assert finetune.dense is not None
    assert Path(finetune.dense.path).name == "dense-s1"
    longer = RunDirectory(folder / "i-longer-i-s0").read().stage("train/all")
    assert Path(longer.reused_from or "").name == "dense-s0"

    results = study_results(folder)
    assert [row.label for row in results.rows] == ["finetune", "Dense", "<i>longer</i>", "broken"]
    assert [row.finished for row in results.rows] == [2, 2, 2, 0]
    _, dense, more, _ = results.rows
    assert [row.dense_steps.mean for row in (dense, more) if row.dense_steps] == [4.0, 6.0]
    hours = [row.device_hours.mean for row in (dense, more) if row.device_hours]
    assert 0 < hours[0] < hours[1]
    assert len(results.measures) == 2
    for measure in results.measures:
        assert dense.values[measure].n == 2
        assert dense.values[measure].deviation is not None

    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    print_table(results_table(results), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "broken, seed 0, 1: data.path" in " ".join(text.split())
    assert "| Dense | 2/2 |" in as_markdown(results_table(results))
    json.dumps(results.as_json())
    for name in ("plot.svg", "plot.png"):
        plot_results(results, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    _check_the_page(folder, tmp_path / "page.html")
    with pytest.raises(RunFailed, match="2 of 8"):
        run_study(study, folder, executor=(third := _Interrupting()))
    assert third.jobs == []
    _check_what_a_changed_study_may_differ_in(write_study, folder)


def _check_the_page(folder: Path, out: Path) -> None:
    found = CliRunner().invoke(app, ["report", str(folder), "--out", str(out)], catch_exceptions=False)
    assert found.output.startswith(f"written: {out}")
    page = Page(out.read_text())
    said = ["6 of 8 runs are finished, 2 failed", "broken, seed 0, 1 failed: data.path = <i>nothing.parquet", "Dense"]
    said += ["FD-random-conv-4 and what it took", "<i>longer</i>, seed 0", "Dense [dense-s0]", "equal cost"]
    for text in said:
        assert text in page.text, text
    assert page.tags.count("svg") == 2 * 2  # of each measure against both costs
    assert page.tags.count("img") == 3
    assert "i" not in page.tags
    lines: list[str] = []
    leave_study_report(folder / "nowhere", lines.append)
    assert lines[0].startswith("No report: ")


def _check_what_a_changed_study_may_differ_in(write_study: WriteStudy, folder: Path) -> None:
    before = (folder / "study.yaml").read_bytes()
    changed = [{**row, "set": ["training.steps=5"]} if row["label"] == "Dense" else row for row in ROWS]
    for rows, said in ((changed, "Dense: training.steps: 4 -> 5"), (ROWS[1:], "rows: without finetune")):
        with pytest.raises(UserError, match=said):
            run_study(load_study(write_study(rows)), folder, executor=SerialCluster())
    with pytest.raises(UserError, match="seeds: without 1"):
        run_study(load_study(write_study(ROWS), seeds=1), folder, executor=SerialCluster())
    assert (folder / "study.yaml").read_bytes() == before


def test_equal_cost_is_marked_and_a_deviation_is_of_a_sample() -> None:
    from ebdiff_orchestrator.study.results import RowResult, Spread, _with_equal_costs

    rows = [RowResult(str(cost), (), {}, Spread.of([cost]), None) for cost in (100.0, 104.0, 106.0, 300.0, 310.0)]
    assert [row.equal_cost for row in _with_equal_costs(rows)] == ["a", "a", "", "b", "b"]
    assert Spread.of([1.0, None, 3.0]) == Spread(2.0, 2**0.5, 2)
    assert Spread.of([None]) is None
