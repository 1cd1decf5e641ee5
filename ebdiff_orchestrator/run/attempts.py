"""A job's attempts: what one said of itself, how many a job may have, and what follows when one has ended."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum, auto

from ebdiff_orchestrator.cluster.executor import Loss
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import JobOutline
from region_workers.storage.integrity import read_if_whole
from schemas.errors import RunFailed
from schemas.job import FAILURE_FILE, PROGRESS_FILE, Failure, Progress
from schemas.process import unix_time

Position = tuple[int, int]  # the index of a stage in its job, and a step of it


class Next(Enum):
    """What follows an attempt that ended without its job being done."""

    GO_ON = auto()  # its machine is taken away: no failure
    RETRY = auto()
    GIVE_UP = auto()


@dataclass
class Attempt:
    """One job under way. `grow_to`: with how many workers it is to go on from its next checkpoint."""

    outline: JobOutline
    number: int
    workers: int
    future: Future[None]
    started_at: float
    progress: Progress | None = None
    grow_to: int | None = None
    recorded_at: float = 0.0

    def begun_at(self) -> Position:
        assert self.progress is not None
        return self.outline.stages.index(self.progress.stage), self.progress.first_step

    def saved_at(self) -> Position:
        """Up to where the work of an attempt that has ended is known to be saved."""
        if self.progress is None or self.progress.state == "starting":
            return 0, 0
        stage, first_step = self.begun_at()
        return stage, self.progress.step if self.has_stopped() else first_step

    def has_stopped(self) -> bool:
        return self.progress is not None and self.progress.state == "stopped"


@dataclass
class Budget:
    """A job's attempts since it last got further, where it got to, and why it has failed for good.

    `reached`: what an attempt went on from, so what is saved; `left_at`: how far the last one was that left early.
    """

    attempts: int = 0
    reached: Position = (0, 0)
    left_at: Position = (-1, 0)
    failed: str | None = None

    def begins_at(self, reached: Position) -> None:
        """An attempt goes on from there; one that starts from further than all before it has a whole budget."""
        if reached > self.reached:
            self.reached, self.attempts = reached, 1

    def leaves_for_free(self, at: Position) -> bool:
        """Whether an attempt that left early there costs nothing: it got further than the one that did before it."""
        further, self.left_at = at > self.left_at, max(at, self.left_at)
        self.attempts -= further
        return further


def what_follows(attempt: Attempt, budget: Budget, loss: Loss | None, failure: Failure, retries: int) -> Next:
    """What to do about an attempt that has ended too soon: one budget a job, and none if trying again cannot help.

    `loss`: the executor's word for its end.
    """
    left_early = (attempt.has_stopped() and attempt.future.exception() is None) or loss == "preempted"
    if left_early and budget.leaves_for_free(attempt.saved_at()):
        return Next.GO_ON
    return Next.RETRY if failure.retryable and budget.attempts <= retries else Next.GIVE_UP


def raise_if_failed(budgets: Mapping[str, Budget], how_to_go_on: str) -> None:
    """Raise RunFailed if some of these jobs have failed for good, with why."""
    failed = {name: budget.failed for name, budget in budgets.items() if budget.failed}
    if failed:
        lines = "\n".join(f"  - {name}: {reason}" for name, reason in failed.items())
        raise RunFailed(
            f"{len(failed)} of {len(budgets)} jobs failed; what the others completed is saved:\n{lines}\n"
            f"When the cause is gone: {how_to_go_on}"
        )


def progress_of(attempt: Attempt, run: RunDirectory) -> Progress | None:
    """What this attempt last said, of its latest stage."""
    files = (run.fetch(f"{name}/{PROGRESS_FILE}") for name in reversed(attempt.outline.stages))
    latest_first = (read_if_whole(Progress, file) for file in files)
    return next((said for said in latest_first if said is not None and _is_of(attempt, run, said)), None)


def failure_of(attempt: Attempt, run: RunDirectory, loss: Loss | None, first_open: str) -> Failure:
    """What this attempt wrote of its failure, else what its future says of the worker's end."""
    for stage in attempt.outline.stages:
        path = run.fetch(f"{stage}/{FAILURE_FILE}")
        failure = read_if_whole(Failure, path)
        if failure is not None and _is_of(attempt, run, failure):
            retryable = failure.retryable or loss is not None  # what a dying worker says last is not why it died
            message = f"{failure.message} (traceback: {path})"
            return failure.model_copy(update={"message": message, "retryable": retryable})
    error = attempt.future.exception()
    last_line = (str(error).strip().splitlines() or [""])[-1][:300]
    lost_how = f"The worker was lost ({type(error).__name__}: {last_line})."
    return Failure(
        stage=first_open,
        attempt=attempt.number,
        message=lost_how if error else "It ended early, or without a result.",
        retryable=True,
        traceback=str(error or ""),
        at=unix_time(),
    )


def _is_of(attempt: Attempt, run: RunDirectory, said: Progress | Failure) -> bool:
    """Numbers alone do not tell: where the manifest was lost they begin again."""
    return (said.attempt, said.owner) == (attempt.number, run.owner)
