"""What to do next: a pure function of the jobs, what is finished, what runs and what is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ebdiff_orchestrator.stages import JobOutline


@dataclass(frozen=True)
class Situation:
    """Where a run stands. `free_slots`: how many more jobs the cluster can hold at this moment."""

    done_stages: frozenset[str]
    running: frozenset[str]
    failed: frozenset[str]
    free_slots: int
    waited_s: float = 0.0


@dataclass(frozen=True)
class Decision:
    """The jobs to start now, those that wait for resources, those that can never run, and whether all is over."""

    start: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    give_up: Mapping[str, str] = field(default_factory=dict)
    finished: bool = False


def next_jobs(
    jobs: tuple[JobOutline, ...], costs: Mapping[str, float], situation: Situation, wait_limit_s: float
) -> Decision:
    """Start whatever can start, the longest job first; a job goes from its draw to its training on its own.

    There is no barrier between regions: a job depends on nothing but the stages in its `after`. A wait has a limit,
    which counts only while no job of this run holds resources that it will give back.
    """
    open_jobs = [job for job in jobs if not _is_over(job, situation)]
    lost = {stage for job in jobs if job.name in situation.failed for stage in job.stages} - situation.done_stages
    dead = {job.name: f"needs {', '.join(job.after)}, which failed" for job in open_jobs if lost & set(job.after)}
    idle = [job for job in open_jobs if job.name not in situation.running and job.name not in dead]
    ready = sorted(
        (job for job in idle if set(job.after) <= situation.done_stages),
        key=lambda job: (-costs[job.name], job.name),
    )
    start = tuple(job.name for job in ready[: situation.free_slots])
    waiting = tuple(job.name for job in ready[situation.free_slots :])
    if waiting and not start and not situation.running and situation.waited_s > wait_limit_s:
        late = f"no resources within workers.wait_limit_s = {wait_limit_s:.0f} s"
        return Decision(give_up={**dead, **dict.fromkeys(waiting, late)})
    return Decision(start, waiting, dead, finished=not open_jobs)


def may_retry(attempts: int, retries: int, retryable: bool) -> bool:
    """Whether a failed job gets another attempt: one budget a job, none if trying again cannot help."""
    return retryable and attempts <= retries


def _is_over(job: JobOutline, situation: Situation) -> bool:
    return job.name in situation.failed or set(job.stages) <= situation.done_stages
