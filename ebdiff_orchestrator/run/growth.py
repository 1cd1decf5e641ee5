"""Elastic regions: a training that would end last goes on, from its next checkpoint, with the workers that are free."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ebdiff_orchestrator.placement.schedule import allowed_widths, speed_up
from ebdiff_orchestrator.run.attempts import Attempt
from ebdiff_orchestrator.run.time_left import stage_left
from schemas.plan import Plan
from schemas.process import unix_time

_FREED_WITHIN_S = 15.0  # Ray counts what a job gave back a little later


@dataclass(frozen=True)
class Growable:
    """A job that could go on with more workers: how many it has, and how long it would still take with them."""

    name: str
    workers: int
    remaining_s: float


class Growth:
    """How many workers each job is to have, as it was planned and as it has grown."""

    def __init__(self, plan: Plan, workers_of: Mapping[str, int]) -> None:
        self._plan, self._planned = plan, dict(workers_of)
        self.workers_of = dict(workers_of)
        self._stopped_at: dict[str, float] = {}  # jobs between the attempt that stopped to grow and the next one
        self._restart_s = 0.0

    def saw_start(self, attempt: Attempt) -> None:
        """Note how long an attempt took to its first step: that is what growing costs."""
        self._restart_s = max(self._restart_s, unix_time() - attempt.started_at)

    def has_stopped_to_grow(self, attempt: Attempt) -> bool:
        """Whether an attempt that has ended is to go on, with more workers."""
        if attempt.grow_to is None or not attempt.has_stopped():
            return False
        name = attempt.outline.name
        self.workers_of[name] = attempt.grow_to
        self._stopped_at[name] = unix_time()
        return True

    def ends_for(self, job: str) -> bool:
        """Whether the job that starts now had stopped to grow."""
        return self._stopped_at.pop(job, None) is not None

    def shrink_what_cannot_grow(self) -> None:
        """A job that stopped to grow goes on as it was planned if the workers were not to be had after all."""
        for name, stopped_at in self._stopped_at.items():
            if unix_time() - stopped_at > _FREED_WITHIN_S:
                self.workers_of[name] = self._planned[name]

    def next(self, running: Iterable[Attempt], free_workers: int, workers_at_once: int) -> Attempt | None:
        """The attempt that is to stop at its next checkpoint, with its `grow_to` set; one at a time."""
        attempts = {attempt.outline.name: attempt for attempt in running}
        if self._stopped_at or any(attempt.grow_to for attempt in attempts.values()):
            return None
        jobs = [
            Growable(name, attempt.workers, remaining_s)
            for name, attempt in attempts.items()
            if (remaining_s := _remaining_s(attempt)) is not None
        ]
        widths = allowed_widths(self._plan.training, workers_at_once)
        efficiency = self._plan.workers.parallel_efficiency
        growth = next_growth(jobs, free_workers, widths, lambda count: speed_up(count, efficiency), self._restart_s)
        if growth is None:
            return None
        name, count = growth
        attempts[name].grow_to = count
        return attempts[name]


def next_growth(
    jobs: Sequence[Growable],
    free_workers: int,
    allowed: Sequence[int],
    speed_up: Callable[[int], float],
    restart_s: float,
) -> tuple[str, int] | None:
    """The job to give free workers to, and how many it then has in all; None where that would end nothing sooner.

    It is the job that would end last. `allowed` are the numbers of workers that can share a batch; going on with more
    costs a restart.
    """
    if not jobs:
        return None
    last = max(jobs, key=lambda job: (job.remaining_s, job.name))
    wider = [count for count in allowed if last.workers < count <= last.workers + free_workers]
    if not wider:
        return None
    best = max(wider, key=speed_up)
    after_s = last.remaining_s * speed_up(last.workers) / speed_up(best)
    return (last.name, best) if after_s + restart_s < last.remaining_s else None


def _remaining_s(attempt: Attempt) -> float | None:
    """How long a training would still take with its workers; None for what is not training, or not known yet."""
    progress, train = attempt.progress, attempt.outline.train
    if train is None or progress is None or progress.stage != train.name or progress.state != "running":
        return None
    left = stage_left(progress)
    return None if left is None else left.seconds
