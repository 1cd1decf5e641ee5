"""What to do next: a pure function of the jobs, what is finished, what runs and what is free."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from ebdiff_orchestrator.run.stages import JobOutline


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
    jobs: tuple[JobOutline, ...],
    workers: Mapping[str, int],
    *,
    done_stages: frozenset[str],
    running: frozenset[str],
    failed: frozenset[str],
    free_workers: int,
    waited_s: float,
    wait_limit_s: float,
) -> Decision:
    """Start whatever can start, in the order of `workers`, which says how many each job takes.

    There is no barrier between regions: a job depends on nothing but the stages in its `after`. No job overtakes one
    that waits for more workers than are free. A wait has a limit, which counts only while no job of this run holds
    resources that it will give back. `free_workers`: how many more the run may start at this moment.
    """
    open_jobs = [job for job in jobs if job.name not in failed and not set(job.stages) <= done_stages]
    lost = {stage for job in jobs if job.name in failed for stage in job.stages} - done_stages
    dead = {job.name: f"needs {', '.join(job.after)}, which failed" for job in open_jobs if lost & set(job.after)}
    idle = [job for job in open_jobs if job.name not in running and job.name not in dead]
    able = {job.name for job in idle if set(job.after) <= done_stages}
    ready = [name for name in workers if name in able]
    fit = sum(held <= free_workers for held in accumulate(workers[name] for name in ready))
    start, waiting = tuple(ready[:fit]), tuple(ready[fit:])
    if waiting and not start and not running and waited_s > wait_limit_s:
        return Decision(late=waiting, give_up=dead)
    return Decision(start, waiting, give_up=dead, finished=not open_jobs)
