"""What a finished stage leaves for the driver: its result, and a record of each of its files."""

from __future__ import annotations

from pathlib import Path

from region_workers.storage.integrity import is_whole
from schemas.job import RESULT_FILE, DrawStage, StageResult, TrainStage


def files_in(folder: Path) -> list[Path]:
    """Every file below `folder`."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def finished_result(run_dir: Path, stage: DrawStage | TrainStage) -> StageResult | None:
    """The result that the stage left, if it finished.

    It must be of the stage's key, of as many steps as asked, and made from inputs that are still there unchanged.
    """
    path = run_dir / stage.name / RESULT_FILE
    try:
        result = StageResult.model_validate_json(path.read_text())
    except (OSError, ValueError):
        return None
    if result.key != stage.key or (isinstance(stage, TrainStage) and result.steps != stage.steps):
        return None
    return result if all(is_whole(run_dir, item) for item in result.inputs) else None
