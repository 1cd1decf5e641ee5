"""What of an evaluation is on record: its key, its folder in the run, and the reports that hold for the run's ensemble.

Imports neither torch nor the driver, so that whatever shows a run can show its numbers.
"""

from __future__ import annotations

from pathlib import Path

from ebdiff_orchestrator.run.stages import ASSEMBLE
from region_workers.storage.integrity import holds
from schemas.digest import digest
from schemas.errors import UserError
from schemas.evaluation import EvaluationReport, SampledImages
from schemas.manifest import Manifest

REPORT_FILE, STATISTICS_FILE = "report.json", "statistics.npz"
EVALUATION_FOLDER = "evaluation"
_VERSION = 2  # of how images are drawn and measured


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
