"""What sampling costs: parameters and multiply-accumulates, weighted by timesteps and by the steps really taken."""

from __future__ import annotations

from ebdiff_orchestrator.ensemble.routes import Routes
from ebdiff_orchestrator.ensemble.timesteps import spaced_timesteps
from ebdiff_orchestrator.plans.preview import Outlook
from schemas.evaluation import StepShare
from schemas.plan import Plan


def steps_by_region(plan: Plan, steps: int) -> dict[str, int]:
    """How many of `steps` sampling steps fall on each region's route.

    Quadratic spacing starts at 0.8 T and crowds the early timesteps, so the paper's regions, which own 24, 20 and 56%
    of the timesteps, get 55, 19 and 26 of 100 steps.
    """
    names = [region.name for region in plan.regions]
    routes = Routes(plan.routes(), names)
    counts, how = dict.fromkeys(names, 0), plan.sampling
    for timestep in spaced_timesteps(how.spacing, steps, plan.diffusion.num_train_timesteps, how.steps_offset):
        counts[names[routes.owner(timestep)]] += 1
    return counts


def step_shares(outlook: Outlook, steps: int) -> tuple[StepShare, ...]:
    """Each region's part in the sampling, in the plan's order."""
    counts = steps_by_region(outlook.plan, steps)
    return tuple(
        StepShare(
            region=each.region.name,
            timesteps=each.route[1] - each.route[0],
            steps=counts[each.region.name],
            params=each.costs.params,
            macs=each.costs.macs,
        )
        for each in outlook.regions
    )


def weighted_by_steps(shares: tuple[StepShare, ...]) -> tuple[int, int]:
    """Parameters and multiply-accumulates (of one network evaluation of one image), averaged over the steps."""
    steps = sum(share.steps for share in shares)
    params = sum(share.steps * share.params for share in shares)
    macs = sum(share.steps * share.macs for share in shares)
    return round(params / steps), round(macs / steps)
