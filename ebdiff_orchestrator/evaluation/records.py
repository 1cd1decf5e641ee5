"""Evaluations on record: by which key, where, and in what report: the number, and what its sampling costs."""

from pathlib import Path

from ebdiff_orchestrator.ensemble.routes import Routes
from ebdiff_orchestrator.ensemble.scheduler import spaced_timesteps
from ebdiff_orchestrator.evaluation.values import label_of
from ebdiff_orchestrator.plans.preview import preview_of
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import ASSEMBLE, ensemble_digest
from region_workers.storage.integrity import holds
from schemas.digest import digest
from schemas.evaluation import EvaluationReport, FeatureJob, StepShare
from schemas.manifest import Evaluation, Manifest
from schemas.plan import Plan

REPORT_FILE, STATISTICS_FILE = "report.json", "statistics.npz"
EVALUATION_FOLDER = "evaluation"
_VERSION = 2  # of how images are drawn and measured


def evaluation_key(manifest: Manifest, job: FeatureJob, reference_digest: str) -> str:
    """SHA-256 of what determines the number: the ensemble, which images of it, which extractor, which reference."""
    drawn = {"seed", "steps", "guidance_scale", "batch_size"}  # the batch size shows in the last bits
    return digest(
        {
            "version": _VERSION,
            "ensemble": ensemble_digest(manifest),
            "num_images": job.num_images,
            "drawn": job.images.model_dump(mode="json", include=drawn),
            **job.measure.key,
            "reference": reference_digest,
        }
    )


def evaluation_folder(run_dir: Path, key: str) -> Path:
    """Where one evaluation lies: its report, its statistics, the images if they are kept, shards while it goes on."""
    return run_dir / EVALUATION_FOLDER / key[:16]


def whole_report(folder: Path) -> EvaluationReport | None:
    """The report in an evaluation's folder; None if it or the statistics beside it are missing or damaged."""
    try:
        report = EvaluationReport.model_validate_json((folder / REPORT_FILE).read_bytes())
        return report if holds(folder / STATISTICS_FILE, report.statistics_sha256) else None
    except (OSError, ValueError):
        return None


def recorded_report(run_dir: str | Path, evaluation: Evaluation) -> EvaluationReport:
    """The report of an evaluation that `evaluate` has returned."""
    report = whole_report(evaluation_folder(RunDirectory(run_dir).path, evaluation.key))
    assert report is not None, "it is recorded with its report"
    return report


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
