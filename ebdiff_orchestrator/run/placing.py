"""The placement of a launch: in which order its jobs start and how many workers each gets, by measured step times."""

import sys
from collections.abc import Mapping

from ebdiff_orchestrator.cluster.executor import Executor, run_one
from ebdiff_orchestrator.placement.schedule import place
from ebdiff_orchestrator.placement.works import DRAW_INTERVALS, draw_steps_of, interval_steps, works_of
from ebdiff_orchestrator.plans.preview import PlanPreview
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.stages import JobOutline
from ebdiff_orchestrator.run.view import View
from region_workers.training.timing import step_seconds
from schemas.plan import Plan
from schemas.stage_names import train_stage_name


def place_jobs(
    jobs: tuple[JobOutline, ...], preview: PlanPreview, images: int, ledger: Ledger, executor: Executor, view: View
) -> tuple[dict[str, int], int]:
    """The workers of each job, in the order of their starts, and how many all may hold together.

    A plan that is not one-per-region has its networks timed first, on one worker, once a run.
    """
    plan = ledger.plan
    if plan.placement == "one-per-region":
        longest_first = sorted(jobs, key=lambda job: (-_macs(job, preview), job.name))
        return {job.name: executor.request.processes for job in longest_first}, sys.maxsize
    seconds = _step_seconds(ledger, executor, view)
    left = _what_is_left(plan, ledger)
    draws = {
        name: 0 if ledger.is_done(name) else steps
        for name, steps in draw_steps_of(plan, interval_steps(plan, images) or 0, DRAW_INTERVALS).items()
    }
    works, first = works_of(left, seconds, draws)
    still = {job.name for job in jobs if not ledger.all_done((job,))}
    works = [work for work in works if work.name in still]
    if not works:
        return {}, sys.maxsize
    first = first if first and first.name in still else None
    efficiency = plan.workers.parallel_efficiency
    schedule = place(works, max(1, executor.workers_at_once()), plan.placement, efficiency, first)
    workers = schedule.widths
    shares = ", ".join(f"{name} {count}" for name, count in workers.items())
    at_once = f"{schedule.devices} workers at once, about {schedule.makespan_s:.0f} s"
    view.line(f"Placement {plan.placement}, {at_once}: {shares}.")
    return workers, schedule.devices


def _step_seconds(ledger: Ledger, executor: Executor, view: View) -> Mapping[float, float]:
    known = ledger.manifest.step_seconds
    if known is None:
        view.line("Timing the networks on one worker, to place the regions ...")
        known = run_one(executor, step_seconds, ledger.plan)
        ledger.record_step_seconds(known)
    return known


def _what_is_left(plan: Plan, ledger: Ledger) -> Plan:
    """The plan with only those steps that its regions' checkpoints have not made."""
    saved = {region.name: ledger.directory.saved_steps(train_stage_name(region)) for region in plan.regions}
    regions = tuple(
        region.model_copy(update={"steps": max(1, plan.steps_of(region) - saved[region.name])})
        for region in plan.regions
    )
    return plan.model_copy(update={"regions": regions})


def _macs(job: JobOutline, preview: PlanPreview) -> float:
    """The multiply-accumulates of a job's training; infinite for a shared draw, which comes first."""
    if job.train is None:
        return float("inf")
    region = next(o for o in preview.regions if o.region.name == job.train.region)
    return float(region.costs.macs * region.steps)
