"""Handing a finished stage to the driver: digests of its files, then the result, written last."""

from __future__ import annotations

import time
from pathlib import Path

from region_workers.device import World
from region_workers.recorder import Recorder
from schemas.digest import file_digest
from schemas.durable import write_model
from schemas.job import RESULT_FILE, Artifact, StageResult, WorkerJob


def artifact(run_dir: Path, path: Path) -> Artifact:
    """The record of one file of the run."""
    return Artifact(path=path.relative_to(run_dir).as_posix(), size_bytes=path.stat().st_size, sha256=file_digest(path))


def finished_result(run_dir: Path, stage: str, key: str) -> StageResult | None:
    """The result that a stage of this key left, if it finished."""
    path = run_dir / stage / RESULT_FILE
    if not path.is_file():
        return None
    result = StageResult.model_validate_json(path.read_text())
    return result if result.key == key else None


def publish(
    job: WorkerJob, recorder: Recorder, world: World, steps: int, files: list[Path], metrics: dict[str, float]
) -> None:
    """Write the stage's result; `files` must be on disk already."""
    if not world.leads:
        return
    run_dir = Path(job.run_dir)
    result = StageResult(
        stage=recorder.stage,
        key=recorder.key,
        started_at=recorder.started_at,
        finished_at=time.time(),
        active_s=recorder.active_s,
        steps=steps,
        artifacts=tuple(artifact(run_dir, path) for path in sorted(files)),
        hardware=world.describe(job.training),
        metrics=metrics,
    )
    write_model(run_dir / recorder.stage / RESULT_FILE, result)
    recorder.announce("done", steps)
