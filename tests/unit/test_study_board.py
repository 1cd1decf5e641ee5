"""How far a study is: the state of each run, the time left for all, and the live view of them."""

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


def _seen(draw: int = 0, train: int = 0, report: Progress | None = None, finished: bool = False, **fields: Any) -> Seen:
    """A run whose stages of so many steps are done, each in 20 s; `finished`: and all others too."""
    manifest, steps = new_manifest(EB), {"draw/a": draw, "train/a": train}
    for name, record in list(manifest.stages.items()):
        if finished or steps.get(name):
            done = {"status": "done", "steps": steps.get(name, 0), "active_s": 20.0}
            manifest = manifest.with_stage(record.model_copy(update=done))
    return Seen(manifest.model_copy(update=fields), {} if report is None else {report.stage: report})


MEASURED = {"k": an_evaluation(num_images=100, seconds_per_image=0.5, wall_s=1000.0, workers=3)}  # 50 s of work
AT_WORK = Progress(stage="train/a", step=50, steps_per_s=2.0)
DRAWS = Progress(stage="draw/a", step=10, steps_per_s=1.0)
BOARDS: list[tuple[str, tuple[str, ...], Seen, str, float | None]] = [
    ("nothing is known", (), Seen(), "waits", None),
    ("one begins", ("at_work",), _seen(), "starts", None),
    # two draws of 50 steps at most, for two rows each, and four trainings of 200; one worker, 1 s a step
    ("it draws", ("at_work",), _seen(report=DRAWS), "draws", 90 + 4 * 200),
    ("it trains", ("at_work",), _seen(20, 0, AT_WORK), "25%", 20 + 375),
    ("it is done", ("finished",), _seen(20, 200), "done", 20 + 60),
    ("and measured", ("finished",), _seen(20, 200, evaluations=MEASURED), "done", 20 + 60 + 3 * 50),
    ("it was done before", ("at_work",), _seen(20, 200, finished=True), "done", 20 + 60),
    ("it failed", ("failed",), _seen(20), "failed", 20 + 3 * 200),
    ("it is measured", ("finished", "at_work"), _seen(20, 200), "measures", 20 + 60),
]


@pytest.mark.parametrize(("stands", "first", "state", "left_s"), [b[1:] for b in BOARDS], ids=[b[0] for b in BOARDS])
def test_a_board_shows_each_run_and_what_is_left_of_all(
    stands: tuple[str, ...], first: Seen, state: str, left_s: float | None
) -> None:
    standing = Standing(**{kind: frozenset({"eb-s0"}) for kind in stands})
    seen = {run.name: Seen() for run in EBS} | {"eb-s0": first}
    board = board_of("trial", EBS, standing, seen, 1, True)
    assert board.rows == {"eb": (state, "waits"), "more": ("waits", "waits")}
    assert board.left_s == (None if left_s is None else pytest.approx(left_s))
    assert board_of("trial", EBS, standing, seen, 2, True).left_s == (left_s and pytest.approx(left_s / 2))


@pytest.mark.parametrize(("width", "height", "seeds"), [(80, 24, 3), (80, 12, 3), (80, 24, 12), (200, 50, 12)])
def test_a_live_view_of_many_runs_fits_the_terminal(
    width: int, height: int, seeds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(width=width, height=height)
    view = StudyTable(console)
    rows = {f"row {letter}": ("done", "37%", *["waits"] * (seeds - 2)) for letter in "abcdefghijk"}
    view.board(Board("trial", tuple(range(seeds)), rows | {"broken": ("failed",) * seeds}, 7200.0))
    view.images(3, 10)
    view.job("row-a-s1 region all", AT_WORK.model_copy(update={"total_steps": 200, "updated_at": unix_time()}))
    console.print(view._render())
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) <= height
    assert "about 2:00:00 left" in " ".join(text.split())
    assert ("more rows" in text) == (height == 12)
    assert ("waiting  failed" in text) == (width == 80 and seeds == 12)
    assert "row-a-s1 region all" in text
    assert "decoding" not in text
