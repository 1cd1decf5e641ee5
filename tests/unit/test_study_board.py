"""How far a study is: the state of each run, the time left for all, and the live view of them."""

import os
from typing import Any

import pytest
from finished_run import an_evaluation
from rich.console import Console

from ebdiff_orchestrator.run.manifests import new_manifest
from ebdiff_orchestrator.study.decide import Standing, StudyRun
from ebdiff_orchestrator.study.progress import Board, Seen, board_of
from ebdiff_orchestrator.study.view import StudyTable
from schemas.job import Progress
from schemas.plan import Plan
from schemas.process import unix_time

EB = Plan.model_validate(
    {
        "regions": [{"train": [0, 1000], "pruning_ratio": 0.5, "name": "a"}],
        "draw": {"interval_steps": 10, "max_intervals": 5},
        "training": {"steps": 200},
    }
)
EBS = tuple(
    StudyRun(
        f"{label}-s{seed}",
        label,
        EB.model_copy(update={"seed": seed}),
        None,
        {draw: 0, ("train/a", f"{label}{seed}"): 200},
    )
    for seed, draw in enumerate((("draw/a", "0"), ("draw/a", "1")))
    for label in ("eb", "more")
)


def _seen(draw: int = 0, train: int = 0, seconds: float = 0.0, **reports: Progress) -> Seen:
    """A run whose stages of so many steps are done, each in so many seconds."""
    manifest = new_manifest(EB)
    for name, steps in (("draw/a", draw), ("train/a", train)):
        done = {"status": "done", "steps": steps, "active_s": seconds} if steps else {}
        manifest = manifest.with_stage(manifest.stage(name).model_copy(update=done))
    return Seen(manifest, {report.stage: report for report in reports.values()})


def _measured() -> Seen:
    """Done and measured, which took 50 s of work, and by the clock longer."""
    seen = _seen(20, 200, 20)
    evaluation = an_evaluation(num_images=100, seconds_per_image=0.5, wall_s=1000.0, workers=3)
    assert seen.manifest is not None
    return Seen(seen.manifest.model_copy(update={"evaluations": {"k": evaluation}}))


def _finished() -> Seen:
    """Done with every stage."""
    seen = _seen(20, 200, 20)
    assert seen.manifest is not None
    stages = {name: stage.model_copy(update={"status": "done"}) for name, stage in seen.manifest.stages.items()}
    return Seen(seen.manifest.model_copy(update={"stages": stages}))


AT_WORK = Progress(stage="train/a", step=50, steps_per_s=2.0)
DRAWS = Progress(stage="draw/a", step=10, steps_per_s=1.0)
BOARDS: list[tuple[str, dict[str, Any], dict[str, Seen], list[str], float | None]] = [
    ("nothing is known", {}, {}, ["waits"] * 4, None),
    ("one begins", {"at_work": {"eb-s0"}}, {"eb-s0": _seen()}, ["starts", *["waits"] * 3], None),
    # two draws of 50 steps at most, for two rows each, and four trainings of 200; one worker, 1 s a step
    ("it draws", {"at_work": {"eb-s0"}}, {"eb-s0": _seen(r=DRAWS)}, ["draws", *["waits"] * 3], 90 + 4 * 200),
    ("it trains", {"at_work": {"eb-s0"}}, {"eb-s0": _seen(20, 0, 20, r=AT_WORK)}, ["25%", *["waits"] * 3], 20 + 375),
    ("it is done", {"finished": {"eb-s0"}}, {"eb-s0": _seen(20, 200, 20)}, ["done", *["waits"] * 3], 20 + 60),
    ("and measured", {"finished": {"eb-s0"}}, {"eb-s0": _measured()}, ["done", *["waits"] * 3], 20 + 60 + 3 * 50),
    ("it was done before", {"at_work": {"eb-s0"}}, {"eb-s0": _finished()}, ["done", *["waits"] * 3], 20 + 60),
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
