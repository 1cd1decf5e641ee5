"""What a person sees: a table in a terminal, lines that do not flood a log elsewhere."""

import io
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import MakePlan
from rich.console import Console

from ebdiff_orchestrator.cli import reports
from ebdiff_orchestrator.cli.app import EXIT_INTERRUPTED, main
from ebdiff_orchestrator.run import view
from ebdiff_orchestrator.run.manifests import new_manifest
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.run_table import run_table
from ebdiff_orchestrator.run.time_left import TimeLeft, stage_left, trainings_left
from ebdiff_orchestrator.run.view import Lines, LiveTable
from schemas.job import Progress
from schemas.manifest import Manifest
from schemas.plan import Plan
from schemas.process import unix_time

NOW = 5000.0
TRAINING = Progress(
    stage="train/0-260", step=250, total_steps=1000, loss=12.345, steps_per_s=2.5, note="fine", updated_at=NOW
)
MASKS = {"mask_distances": {"240-460": 0.2}, "mask_threshold": 0.1, "note": "largest mask distance 0.200"}
WHY = "No ticket for region [440, 1000) after draw.max_intervals = 100 masks. Raise draw.max_intervals. " * 2
EPOCHS = "draw.interval_steps=null"


@pytest.fixture
def screen() -> io.StringIO:
    """What a person sees."""
    return io.StringIO()


def _progress(stage: str, **fields: Any) -> Progress:
    return TRAINING.model_copy(update={"stage": stage, "note": "", **fields})


def _run(plan: Plan, stages: dict[str, dict[str, Any]]) -> Manifest:
    """A manifest whose stages have these fields."""
    manifest = new_manifest(plan)
    for name, fields in stages.items():
        manifest = manifest.with_stage(manifest.stage(name).model_copy(update=fields))
    return manifest


def _live(screen: io.StringIO) -> LiveTable:
    return LiveTable(Console(file=screen, force_terminal=True, width=80))


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("system", [None, "truecolor"])
def test_a_run_is_one_table_that_fits_with_all_that_is_told(
    tiny_plan: MakePlan, screen: io.StringIO, width: int, system: Any
) -> None:
    manifest = _run(
        tiny_plan(),
        {
            "draw/0-260": {"status": "done", "active_s": 4134.0, "steps": 4680},
            "draw/240-460": {"status": "running", "attempts": 2},
            "draw/440-1000": {"status": "failed", "attempts": 3, "error": WHY},
            "train/0-260": {"status": "running", "attempts": 1},
            "train/240-460": {"attempts": 1},
            "train/440-1000": {"status": "running"},
        },
    )
    reports = {
        "draw/240-460": _progress("draw/240-460", step=3900, total_steps=39_000, steps_per_s=7.31, **MASKS),
        "train/0-260": _progress("train/0-260", step=212_340, total_steps=800_000, note="checkpoint 3 passed over"),
        "train/440-1000": _progress("train/440-1000", updated_at=NOW - 125),
    }
    console = Console(file=screen, width=width, force_terminal=system is not None, color_system=system)
    console.print(run_table(manifest, reports, NOW, previews=7))
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert ("\x1b" in screen.getvalue()) == (system is not None)
    assert max(map(len, text.splitlines())) <= width
    said = " ".join(text.split())
    assert said.startswith("run tiny: 1 of 8 stages done, training ≤ 65:17:44 left, 7 previews")
    for part in (WHY.strip(), "train/0-260: checkpoint 3 passed over", "a ticket at 0.1 or less"):
        assert part in said
    assert "more than one: draw/240-460 2, draw/440-1000 3." in said
    if width < 60:
        return  # rows are broken, nothing is cut
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith(("draw/", "train/", "samples"))}
    for stage, parts in {
        "draw/0-260": ["done in 1:08:54", "4680"],
        "draw/240-460": ["≤ 1:20:02 left", "3900 ", "0.200"],
        "draw/440-1000": ["failed"],
        "train/0-260": ["65:17:44 left", "212340/800000", "26%"],
        "train/240-460": ["starting"],
        "train/440-1000": ["silent 0:02:05"],
        "samples": ["pending"],
    }.items():
        assert all(part in rows[stage] for part in parts), rows[stage]
    if width >= 80:
        bar = re.search("█+░+", rows["draw/240-460"])
        assert bar is not None
        assert bar[0].count("█") == len(bar[0]) // 2  # twice as far as a ticket may be
        assert rows["draw/240-460"].split()[-2:] == ["12.35", "7.31"]
        assert rows["train/0-260"].split()[-2:] == ["12.35", "2.50"]


def test_words_that_several_stages_share_are_told_once(tiny_plan: MakePlan, screen: io.StringIO) -> None:
    names, filling = ("draw/0-260", "draw/240-460"), "2 masks, queue of 5 filling"
    manifest = _run(tiny_plan(), {name: {"status": "running"} for name in names})
    Console(file=screen, width=80).print(
        run_table(manifest, {name: _progress(name, note=filling) for name in names}, NOW, 0)
    )
    assert f"{', '.join(names)}: {filling}" in screen.getvalue()


def test_a_draw_has_at_most_so_much_time_left() -> None:
    assert str(stage_left(_progress("draw/0-260"))) == "≤ 0:05:00"
    assert stage_left(TRAINING) == TimeLeft(300.0)
    assert stage_left(TRAINING.model_copy(update={"steps_per_s": None})) is None


DRAWN = {"status": "done", "steps": 100, "active_s": 50.0}  # the dense network: 0.5 s a step
TRAINED = {"status": "done", "steps": 12, "active_s": 6.0}
ONE_TRAINED = {"draw/0-260": DRAWN, "draw/240-460": DRAWN, "draw/440-1000": DRAWN, "train/0-260": TRAINED}


@pytest.mark.parametrize(
    ("changes", "stages", "at_work", "expected"),
    [
        pytest.param([], {}, {}, None, id="nobody is at work"),
        pytest.param([], {}, {"samples": (10, 2.0)}, None, id="only samples are drawn"),
        pytest.param(
            [],
            ONE_TRAINED,
            {"train/240-460": (2, 0.1), "train/440-1000": (7, 0.1)},
            TimeLeft(100.0),
            id="the longest of those at work",
        ),
        pytest.param(
            [],
            ONE_TRAINED,
            {"train/240-460": (2, 0.1)},
            TimeLeft(106.0, at_most=True),
            id="one waits for a worker, its steps as long as a larger network's at most",
        ),
        pytest.param(
            ["regions.2.pruning_ratio=0.3"],
            ONE_TRAINED,
            {"train/240-460": (2, 0.1)},
            TimeLeft(106.0),
            id="one waits for a worker, a network of its size was timed",
        ),
        pytest.param(
            [],
            {"draw/240-460": DRAWN, "draw/440-1000": DRAWN, "train/240-460": TRAINED, "train/440-1000": TRAINED},
            {"draw/0-260": (10, 2.0)},
            TimeLeft(25.0 + 6.0, at_most=True),
            id="a draw takes all its masks at most, its training as long as dense steps",
        ),
        pytest.param(
            [EPOCHS], {}, {"draw/0-260": (10, 2.0)}, TimeLeft(3 * 12 * 0.5 + 25.0 + 2 * 30.0, at_most=True),
            id="draws by epochs are as long as the one at work",
        ),
        pytest.param(
            [], {"draw/0-260": DRAWN}, {"train/0-260": (0, None)}, TimeLeft(6.0 + 2 * (30.0 + 6.0), at_most=True),
            id="a training that has just begun is timed as its draw",
        ),
        pytest.param([], {"draw/0-260": {**DRAWN, "reused_from": "x"}}, {"train/0-260": (0, None)}, None, id="reused"),
        pytest.param(
            [],
            {"draw/240-460": {"status": "failed"}, "draw/440-1000": {"status": "failed"}, "draw/0-260": DRAWN},
            {"train/0-260": (2, 1.0)},
            TimeLeft(10.0),
            id="what has failed is not waited for",
        ),
        pytest.param(
            ["draw.scope=shared"], {}, {"draw/shared": (10, 2.0)}, TimeLeft(25.0 + 3 * 6.0, at_most=True),
            id="all wait for a shared draw",
        ),
    ],
)  # fmt: skip
def test_the_time_left_of_all_trainings(
    tiny_plan: MakePlan,
    changes: list[str],
    stages: dict[str, Any],
    at_work: dict[str, tuple[int, float | None]],
    expected: TimeLeft | None,
) -> None:
    totals = {True: 60, False: 12}
    reports = {
        name: _progress(name, step=step, steps_per_s=rate, total_steps=totals[name.startswith("draw/")])
        for name, (step, rate) in at_work.items()
    }
    begun = {name: {"status": "running", "attempts": 1} for name in at_work}
    assert trainings_left(_run(tiny_plan(*changes), stages | begun), reports, draw_steps=60) == expected


def test_nothing_is_left_of_trainings_that_have_all_failed_though_a_worker_spoke_just_before(
    tiny_plan: MakePlan,
) -> None:
    plan = tiny_plan()
    failed = {name: {"status": "failed"} for name in new_manifest(plan).stages}
    assert trainings_left(_run(plan, failed), {"train/0-260": TRAINING}) is None


def test_a_job_may_begin_while_the_table_is_drawn(tiny_plan: MakePlan, screen: io.StringIO) -> None:
    class BeginsAnother(Progress):
        def __getattribute__(self, name: str) -> Any:
            if name == "updated_at":  # which only whoever draws asks for
                table.job("region 240-460", _progress("train/240-460", step=7, updated_at=unix_time()))
            return super().__getattribute__(name)

    with _live(screen) as table:
        table.run(_run(tiny_plan(), {"train/0-260": {"status": "running"}, "train/240-460": {"status": "running"}}))
        table.job("region 0-260", BeginsAnother(**{**TRAINING.model_dump(), "updated_at": unix_time()}))
    assert "250/1000" in screen.getvalue()


def test_lines_about_one_job_come_at_most_every_15_seconds_but_events_always(
    screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(view.time, "monotonic", lambda: now[0])
    lines = Lines(Console(file=screen, width=200))
    for _ in range(100):
        lines.job("region 0-260", TRAINING)
        lines.job("region 240-460", TRAINING)
        lines.images(7, 0, "encoding images")
        now[0] += 0.5
    for told in ("region 0-260", "region 240-460", "] encoding images: 7 of ?"):
        assert screen.getvalue().count(told) == 4
    lines.line("region 0-260: failed.")
    assert screen.getvalue().count("region 0-260") == 5


@pytest.mark.parametrize(("begun", "said"), [(True, ""), (False, "yet; waiting for one, 60 s")])
def test_who_watches_is_told_to_wait_for_a_run_and_nothing_when_stopping(
    tiny_plan: MakePlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    begun: bool,
    said: str,
) -> None:
    def wait(seconds: float) -> None:
        if RunDirectory(tmp_path).exists():
            raise KeyboardInterrupt
        RunDirectory(tmp_path).write(new_manifest(tiny_plan()))

    if begun:
        wait(0)
    monkeypatch.setattr(reports.time, "sleep", wait)
    monkeypatch.setattr(sys, "argv", ["ebdiff", "status", str(tmp_path), "--watch"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == EXIT_INTERRUPTED
    assert said in told.err
    assert bool(told.err) == bool(said)
    assert "train/" in told.out


def test_a_job_that_is_starting_has_a_row_but_no_line(screen: io.StringIO) -> None:
    starting = Progress(stage="draw/0-260", state="starting")
    Lines(Console(file=screen, width=120)).job("region 0-260", starting)
    assert not screen.getvalue()
    with _live(screen) as table:
        table.job("region 0-260", starting)
    assert "starting" in screen.getvalue()


def test_lines_are_not_cut_or_marked_up(screen: io.StringIO) -> None:
    Lines(Console(file=screen, width=40)).line("[0, 260) " + "x" * 100)
    assert "[0, 260) " + "x" * 100 in screen.getvalue()


@pytest.mark.parametrize("of_a_run", [False, True])
def test_the_live_table_follows_jobs_and_the_run_in_a_terminal(
    tiny_plan: MakePlan, screen: io.StringIO, of_a_run: bool
) -> None:
    with _live(screen) as table:
        table.line("region 0-260: started (attempt 1).")
        if of_a_run:
            table.run(_run(tiny_plan(), {"train/0-260": {"status": "running"}}))
            table.previews(3)
        table.job("region 0-260", TRAINING.model_copy(update={"updated_at": unix_time()}))
        table.waiting("waiting for a worker")
    assert "started (attempt 1)" in screen.getvalue()
    assert "250/1000" in screen.getvalue()
    assert bool(re.search("run tiny: 0 of 8 stages done.* 3 previews", screen.getvalue())) is of_a_run
