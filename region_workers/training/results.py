"""Handing a finished stage to the driver: digests of its files, then the result, written last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from region_workers.storage.durable import write_model
from region_workers.storage.integrity import artifact, is_whole
from schemas.job import RESULT_FILE, Artifact, DrawStage, StageResult, TrainStage, WorkerJob
from schemas.process import unix_time

if TYPE_CHECKING:  # they import torch, which whoever only verifies a run does without
    from region_workers.training.device import World
    from region_workers.training.reporter import StageReporter


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


def publish(
    job: WorkerJob,
    reporter: StageReporter,
    world: World,
    steps: int,
    files: list[Path],
    metrics: dict[str, float],
    inputs: tuple[Artifact, ...] = (),
) -> None:
    """Write the stage's result; `files` must be on disk already. Only on rank zero."""
    run_dir = Path(job.run_dir)
    result = StageResult(
        stage=reporter.stage,
        key=reporter.key,
        attempt=job.attempt,
        owner=job.owner,
        started_at=reporter.started_at,
        finished_at=unix_time(),
        active_s=reporter.active_s,
        steps=steps,
        inputs=inputs,
        artifacts=tuple(artifact(run_dir, path) for path in sorted(files)),
        hardware=world.describe(job.training),
        metrics=metrics,
        peak_memory_bytes=world.peak_memory_bytes(),
    )
    write_model(run_dir / reporter.stage / RESULT_FILE, result)
    reporter.announce("done", steps)
