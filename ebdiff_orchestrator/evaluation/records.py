"""Evaluations on record: by which key, and where."""

from pathlib import Path

from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import ASSEMBLE
from region_workers.storage.integrity import holds
from schemas.digest import digest
from schemas.evaluation import EvaluationReport, FeatureJob
from schemas.manifest import Evaluation, Manifest

REPORT_FILE, STATISTICS_FILE = "report.json", "statistics.npz"
EVALUATION_FOLDER = "evaluation"
_VERSION = 2  # of how images are drawn and measured


def ensemble_digest(manifest: Manifest) -> str:
    return digest([[item.path, item.sha256] for item in manifest.stage(ASSEMBLE).artifacts])


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
