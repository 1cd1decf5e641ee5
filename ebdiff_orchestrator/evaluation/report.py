"""The report of an evaluation: its number, and what the sampling that it measured costs."""

from ebdiff_orchestrator.ensemble.routes import Routes
from ebdiff_orchestrator.ensemble.scheduler import spaced_timesteps
from ebdiff_orchestrator.evaluation.values import label_of
from ebdiff_orchestrator.plans.preview import preview_of
from ebdiff_orchestrator.run.stages import ASSEMBLE
from schemas.evaluation import EvaluationReport, StepShare
from schemas.manifest import Evaluation, Manifest
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


def report_of(manifest: Manifest, evaluation: Evaluation, reference: str, statistics_sha256: str) -> EvaluationReport:
    """The number with what it needs to be read rightly; `reference` says what it is measured against."""
    preview, steps = preview_of(manifest), evaluation.steps
    counts = steps_by_region(manifest.plan, steps)
    shares = tuple(
        StepShare(
            region=each.region.name,
            timesteps=each.route[1] - each.route[0],
            steps=counts[each.region.name],
            params=each.costs.params,
            macs=each.costs.macs,
        )
        for each in preview.regions
    )
    all_macs = sum(share.steps * share.macs for share in shares)
    passes = 1 if evaluation.guidance_scale in (0, 1) else 2  # with and without the class
    return EvaluationReport(
        evaluation=evaluation,
        label=label_of(evaluation),
        reference=reference,
        statistics_sha256=statistics_sha256,
        stored_bytes=sum(item.size_bytes for item in manifest.stage(ASSEMBLE).artifacts),
        shares=shares,
        params_by_timesteps=preview.weighted.params,
        macs_by_timesteps=preview.weighted.macs,
        params_by_steps=round(sum(share.steps * share.params for share in shares) / steps),
        macs_by_steps=round(all_macs / steps),
        macs_per_image=passes * all_macs,
    )
