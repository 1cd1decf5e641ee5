"""What an attempt left: how far it is saved, and why it failed, by its own word or else by that of its future."""

from concurrent.futures import Future
from pathlib import Path

import pytest
from conftest import ONE_REGION, MakePlan

from ebdiff_orchestrator.cluster.executor import Loss
from ebdiff_orchestrator.run.attempts import Attempt, failure_of, progress_of
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import Inputs, outline_jobs
from region_workers.storage.durable import write_model
from schemas.job import FAILURE_FILE, PROGRESS_FILE, Failure, Progress, ProgressState

DRAW, TRAIN = "draw/all", "train/all"
OWNER = "00000001-00000000.json"


@pytest.fixture
def attempt(tiny_plan: MakePlan) -> Attempt:
    """The third attempt of a job that draws, then trains."""
    (outline,) = outline_jobs(tiny_plan(ONE_REGION), Inputs("store"))
    return Attempt(outline, number=3, workers=1, future=Future(), started_at=0.0)


def _progress(stage: str, state: ProgressState, attempt: int = 3, owner: str = OWNER) -> Progress:
    return Progress(stage=stage, state=state, attempt=attempt, owner=owner, first_step=4, step=9)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """The run of the driver whose attempt it is."""
    return RunDirectory(tmp_path, given_by=OWNER)


@pytest.mark.parametrize(
    ("progress", "saved"),
    [
        (None, (0, 0)),
        (_progress(TRAIN, "starting"), (0, 0)),
        (_progress(DRAW, "running"), (0, 4)),
        (_progress(TRAIN, "running"), (1, 4)),
        (_progress(TRAIN, "stopped"), (1, 9)),
    ],
)
def test_what_is_saved_is_where_it_stopped_else_what_it_went_on_from(
    attempt: Attempt, progress: Progress | None, saved: tuple[int, int]
) -> None:
    attempt.progress = progress
    assert attempt.saved_at() == saved


def test_the_latest_stage_that_this_very_attempt_told_of_counts(
    attempt: Attempt, run: RunDirectory, tmp_path: Path
) -> None:
    assert progress_of(attempt, run) is None
    write_model(tmp_path / DRAW / PROGRESS_FILE, _progress(DRAW, "done"))
    for another in ({"attempt": 2}, {"owner": "of a manifest that was lost"}):
        write_model(tmp_path / TRAIN / PROGRESS_FILE, _progress(TRAIN, "running").model_copy(update=another))
        assert progress_of(attempt, run) == _progress(DRAW, "done")
    write_model(tmp_path / TRAIN / PROGRESS_FILE, _progress(TRAIN, "running"))
    assert progress_of(attempt, run) == _progress(TRAIN, "running")


@pytest.mark.parametrize(
    ("written_by", "retryable", "loss", "again"),
    [
        ((3, OWNER), False, None, False),
        ((3, OWNER), True, None, True),
        ((3, OWNER), False, "died", True),
        ((2, OWNER), False, None, True),
        ((3, "of a manifest that was lost"), False, None, True),
    ],
)
def test_its_own_word_for_a_failure_counts_unless_its_machine_was_lost(
    attempt: Attempt,
    run: RunDirectory,
    tmp_path: Path,
    written_by: tuple[int, str],
    retryable: bool,
    loss: Loss | None,
    again: bool,
) -> None:
    attempt.future.set_exception(ValueError("of the future\nits last line"))
    number, owner = written_by
    told = Failure(stage=DRAW, attempt=number, owner=owner, message="Told.", retryable=retryable, traceback="", at=0.0)
    write_model(tmp_path / DRAW / FAILURE_FILE, told)
    failure = failure_of(attempt, run, loss, TRAIN)
    assert failure.retryable is again
    if written_by == (attempt.number, OWNER):
        assert failure.message == f"Told. (traceback: {tmp_path / DRAW / FAILURE_FILE})"
        assert failure.stage == DRAW
    else:
        assert (failure.stage, failure.attempt) == (TRAIN, 3)
        assert failure.message == "The worker was lost (ValueError: its last line)."
        assert failure.traceback == "of the future\nits last line"


def test_an_end_without_a_word_is_told_as_that(attempt: Attempt, run: RunDirectory) -> None:
    attempt.future.set_result(None)
    failure = failure_of(attempt, run, None, TRAIN)
    assert (failure.message, failure.traceback) == ("It ended early, or without a result.", "")
    assert failure.retryable
