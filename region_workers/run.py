"""One worker's whole life: draw, then train, on one device; the same under Ray, torchrun and plain Python."""

from __future__ import annotations

import fcntl
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from region_workers.data.store import ImageStore, ensure_store
from region_workers.device import World, current_world, prepare_process
from region_workers.drawing.draw import Draw
from region_workers.failures import StopRequestedError, is_retryable, message_for_people
from region_workers.family import PixelFamily
from region_workers.randomness import StepRandomness
from region_workers.results import finished_result
from region_workers.training import train
from schemas.digest import seed_from
from schemas.durable import write_model
from schemas.errors import RunFailed
from schemas.job import FAILURE_FILE, DrawStage, Failure, TrainStage, WorkerJob

_LOCK_WAIT_S = 120.0


def run_job(job: WorkerJob) -> None:
    """Complete the job's stages, skipping what is finished; StopRequestedError if the run was asked to stop.

    A failure is written beside the stage before it is raised, so that the driver can tell people about it.
    """
    prepare_process(job.training)
    world = current_world()
    stage: DrawStage | TrainStage | None = None
    try:
        store = _open_store(job, world)
        for stage in (job.draw, job.train):
            if stage is not None and not _is_finished(job, stage):
                with _only_worker(job, stage.name, world):
                    _run_stage(job, stage, store, world)
    except StopRequestedError:
        raise
    except BaseException as error:
        if world.leads:
            _write_failure(job, stage.name if stage else job.stages()[0], error)
        raise


def _run_stage(job: WorkerJob, stage: DrawStage | TrainStage, store: ImageStore, world: World) -> None:
    kind = "draw" if isinstance(stage, DrawStage) else "train"
    randomness = StepRandomness(job.seed, kind, stage.timesteps, world.device)
    family = PixelFamily(job, store, world.device, randomness.seed_for("data"))
    if isinstance(stage, TrainStage):
        train(job, stage, family, randomness, world)
        return
    torch.manual_seed(seed_from(job.seed, "initial weights"))  # every region draws from the same start
    Draw(job, stage, family, randomness, len(store) // job.training.batch_size, world).run()


def _is_finished(job: WorkerJob, stage: DrawStage | TrainStage) -> bool:
    result = finished_result(Path(job.run_dir), stage.name, stage.key)
    return result is not None and (isinstance(stage, DrawStage) or result.steps == stage.steps)


def _open_store(job: WorkerJob, world: World) -> ImageStore:
    store = ensure_store(job.data, Path(job.cache_dir))
    if store.digest != job.store_digest:
        raise RunFailed(
            f"The images of data.path = {job.data.path} are not those the run began with "
            f"(digest {store.digest[:12]}, expected {job.store_digest[:12]}). Restore them, or start a new run."
        )
    world.barrier()
    return store


@contextmanager
def _only_worker(job: WorkerJob, stage: str, world: World) -> Iterator[None]:
    """Hold the stage's lock, so that a worker left over from before a crash cannot write beside this one."""
    if not world.leads:
        yield
        return
    path = Path(job.run_dir) / stage / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunFailed(
                        f"Stage {stage} is still held by another worker after {_LOCK_WAIT_S:.0f} s. "
                        "Make sure that no other launch or resume of this run is going on."
                    ) from None
                time.sleep(0.5)
        yield


def _write_failure(job: WorkerJob, stage: str, error: BaseException) -> None:
    failure = Failure(
        stage=stage,
        message=message_for_people(error),
        retryable=is_retryable(error),
        traceback="".join(traceback.format_exception(error)),
        at=time.time(),
    )
    write_model(Path(job.run_dir) / stage / FAILURE_FILE, failure)
