"""What to do next: a pure function of the jobs, what is finished, what runs and what is free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ebdiff_orchestrator.run.stages import JobOutline


@dataclass(frozen=True)
class Situation:
    """Where a run stands. `free_workers`: how many more the run may start at this moment."""

    done_stages: frozenset[str]
    running: frozenset[str]
    failed: frozenset[str]
    free_workers: int
    waited_s: float = 0.0


@dataclass(frozen=True)
class Decision:
    """The jobs to start now, those that wait for resources or have waited too long, those that can never run.

    `finished`: whether all is over.
    """

    start: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    give_up: Mapping[str, str] = field(default_factory=dict)
    finished: bool = False


def next_jobs(
    jobs: tuple[JobOutline, ...], workers: Mapping[str, int], situation: Situation, wait_limit_s: float
) -> Decision:
    """Start whatever can start, in the order of `workers`, which says how many each job takes.

    There is no barrier between regions: a job depends on nothing but the stages in its `after`. No job overtakes one
    that waits for more workers than are free. A wait has a limit, which counts only while no job of this run holds
    resources that it will give back.
    """
    open_jobs = [job for job in jobs if not _is_over(job, situation)]
    lost = {stage for job in jobs if job.name in situation.failed for stage in job.stages} - situation.done_stages
    dead = {job.name: f"needs {', '.join(job.after)}, which failed" for job in open_jobs if lost & set(job.after)}
    idle = [job for job in open_jobs if job.name not in situation.running and job.name not in dead]
    able = {job.name for job in idle if set(job.after) <= situation.done_stages}
    ready = [name for name in workers if name in able]
    fit = _how_many_fit([workers[name] for name in ready], situation.free_workers)
    start, waiting = tuple(ready[:fit]), tuple(ready[fit:])
    if waiting and not start and not situation.running and situation.waited_s > wait_limit_s:
        return Decision(late=waiting, give_up=dead)
    return Decision(start, waiting, give_up=dead, finished=not open_jobs)


def _how_many_fit(workers: Sequence[int], free: int) -> int:
    """How many of the jobs, from the first on, find their workers."""
    for index, count in enumerate(workers):
        free -= count
        if free < 0:
            return index
    return len(workers)


def _is_over(job: JobOutline, situation: Situation) -> bool:
    return job.name in situation.failed or set(job.stages) <= situation.done_stages
