"""What a person sees: a table in a terminal, lines that do not flood a log elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ebdiff_orchestrator.run import view
from ebdiff_orchestrator.run.view import Lines, LiveTable, progress_table, time_left
from schemas.job import Progress

TRAINING = Progress(stage="train/0-260", step=250, total_steps=1000, loss=12.345, steps_per_s=2.5, note="fine")


def _text(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_progress_shows_stage_step_loss_rate_and_time_left() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(progress_table({"region 0-260": TRAINING}))
    for part in ("region 0-260", "train/0-260", "250/1000", "12.35", "2.50", "0:05:00", "fine"):
        assert part in _text(console)


def test_a_draw_has_at_most_so_much_time_left() -> None:
    draw = TRAINING.model_copy(update={"stage": "draw/0-260"})
    assert time_left(draw) == "≤ 0:05:00"
    assert time_left(TRAINING.model_copy(update={"steps_per_s": None})) == ""


def test_lines_about_one_job_come_at_most_every_15_seconds_but_events_always(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(view.time, "monotonic", lambda: now[0])
    lines = Lines(console := Console(file=io.StringIO(), width=200))
    for _ in range(100):
        lines.job("region 0-260", TRAINING)
        lines.job("region 240-460", TRAINING)
        now[0] += 0.5
    assert _text(console).count("region 0-260") == 4
    assert _text(console).count("region 240-460") == 4
    lines.line("region 0-260: failed.")
    assert _text(console).count("region 0-260") == 5


def test_a_job_that_is_starting_has_a_row_but_no_line() -> None:
    starting = Progress(stage="draw/0-260", state="starting")
    console = Console(file=io.StringIO(), width=120)
    console.print(progress_table({"region 0-260": starting}))
    assert "starting" in _text(console)
    lines = Lines(console := Console(file=io.StringIO(), width=120))
    lines.job("region 0-260", starting)
    assert not _text(console)


def test_lines_are_not_cut_or_marked_up() -> None:
    lines = Lines(console := Console(file=io.StringIO(), width=40))
    lines.line("[0, 260) " + "x" * 100)
    assert "[0, 260) " + "x" * 100 in _text(console)


def test_the_live_table_follows_jobs_in_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with LiveTable(console) as table:
        table.line("region 0-260: started (attempt 1).")
        table.job("region 0-260", TRAINING)
    assert "started (attempt 1)" in _text(console)
    assert "250/1000" in _text(console)
