"""What of an evaluation is on record, what its number is called, and what the sampling that it measured costs."""

from __future__ import annotations

from pathlib import Path

from ebdiff_orchestrator.ensemble.routes import Routes
from ebdiff_orchestrator.ensemble.scheduler import spaced_timesteps
from ebdiff_orchestrator.plans.preview import PlanPreview
from ebdiff_orchestrator.run.stages import ASSEMBLE
from region_workers.storage.integrity import holds
from schemas.digest import digest
from schemas.errors import UserError
from schemas.evaluation import EvaluationReport, SampledImages, StepShare
from schemas.manifest import Evaluation, Manifest
from schemas.plan import Plan

REPORT_FILE, STATISTICS_FILE = "report.json", "statistics.npz"
EVALUATION_FOLDER = "evaluation"
_VERSION = 2  # of how images are drawn and measured
FULL_IMAGES = 50_000
# Of pytorch-fid's weights; the eight digits that it begins with stand in their file's name.
OFFICIAL_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def ensemble_digest(manifest: Manifest) -> str:
    """SHA-256 of the ensemble's files."""
    return digest([[item.path, item.sha256] for item in manifest.stage(ASSEMBLE).artifacts])


def evaluation_key(
    manifest: Manifest, num_images: int, images: SampledImages, inception_sha256: str, reference_digest: str
) -> str:
    """SHA-256 of what determines the number: the ensemble, which images of it, which network, which reference."""
    drawn = images.model_dump(mode="json", include={"seed", "steps", "guidance_scale", "batch_size"})
    return digest(
        {
            "version": _VERSION,
            "ensemble": ensemble_digest(manifest),
            "num_images": num_images,
            "drawn": drawn,  # the batch size shows in the last bits
            "inception": inception_sha256,
            "reference": reference_digest,
        }
    )


def work_folder(run_dir: Path) -> Path:
    """Where the evaluations of a run lie."""
    return run_dir / EVALUATION_FOLDER


def evaluation_folder(run_dir: Path, key: str) -> Path:
    """Where one evaluation lies: its report, its statistics, the images if they are kept, shards while it goes on."""
    return work_folder(run_dir) / key[:16]


def current_reports(run_dir: Path, manifest: Manifest) -> tuple[EvaluationReport, ...]:
    """The reports of the recorded evaluations of the ensemble that the run has now, the newest last.

    Those of an earlier one, from before the run was extended, are left out. UserError for a damaged one.
    """
    ensemble = ensemble_digest(manifest)
    files = [evaluation_folder(run_dir, key) / REPORT_FILE for key in manifest.evaluations]
    reports = [_read(file) for file in files if file.is_file()]
    current = [report for report in reports if report.evaluation.ensemble_digest == ensemble]
    return tuple(sorted(current, key=lambda report: report.evaluation.at))


def whole_report(folder: Path) -> EvaluationReport | None:
    """The report in an evaluation's folder; None if it or the statistics beside it are missing or damaged."""
    try:
        report = _read(folder / REPORT_FILE)
        whole = holds(folder / STATISTICS_FILE, report.statistics_sha256)
    except (OSError, UserError):
        return None
    return report if whole else None


def _read(file: Path) -> EvaluationReport:
    try:
        return EvaluationReport.model_validate_json(file.read_bytes())
    except ValueError:
        remedy = "The same `ebdiff evaluate` makes it again; or delete it."
        raise UserError(f"{file} is damaged: expected the report as it was written. {remedy}") from None


def fid_label(evaluation: Evaluation) -> str:
    """The name to print beside the number: `FID-50k`, or `FID-1k (1,000 images; not comparable with FID-50k)`."""
    count = evaluation.num_images
    name = f"FID-{count / 1000:g}k" if count >= 1000 else f"FID-{count}"
    notes = []
    if count < FULL_IMAGES:
        notes.append(f"{count:,} images; not comparable with FID-50k")
    if evaluation.inception_sha256 != OFFICIAL_SHA256:
        notes.append(f"Inception weights {evaluation.inception_sha256[:8]} are not pytorch-fid's: not a published FID")
    return f"{name} ({'; '.join(notes)})" if notes else name


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


def step_shares(preview: PlanPreview, steps: int) -> tuple[StepShare, ...]:
    """Each region's part in the sampling, in the plan's order."""
    counts = steps_by_region(preview.plan, steps)
    return tuple(
        StepShare(
            region=each.region.name,
            timesteps=each.route[1] - each.route[0],
            steps=counts[each.region.name],
            params=each.costs.params,
            macs=each.costs.macs,
        )
        for each in preview.regions
    )


def weighted_by_steps(shares: tuple[StepShare, ...]) -> tuple[int, int]:
    """Parameters and multiply-accumulates (of one network evaluation of one image), averaged over the steps."""
    steps = sum(share.steps for share in shares)
    params = sum(share.steps * share.params for share in shares)
    macs = sum(share.steps * share.macs for share in shares)
    return round(params / steps), round(macs / steps)
