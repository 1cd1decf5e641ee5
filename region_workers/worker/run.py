"""One worker's whole life: draw, then train, on one device; the same under Ray, torchrun and plain Python."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Self

from region_workers.data.store import Store
from region_workers.storage.durable import make_folder, remove_leftovers, write_model
from region_workers.storage.integrity import finished_result, read_if_whole
from region_workers.storage.locks import locked
from region_workers.storage.places import SCRATCH_FOLDER, cache_dir_of
from region_workers.training.device import World, current_world, prepare_process
from region_workers.training.draw import Draw, Slim
from region_workers.training.failures import (
    HangError,
    StageHeldError,
    StopRequestedError,
    is_retryable,
    message_for_people,
)
from region_workers.training.family import family_of, open_samples
from region_workers.training.randomness import StepRandomness
from region_workers.training.reporter import announce_start, is_told
from region_workers.training.stage_loop import Stage, StageLoop
from region_workers.training.train import Train
from region_workers.worker.uploader import Uploader, working_folder
from schemas.job import FAILURE_FILE, STOP_FILE, DrawStage, Failure, TrainStage, WorkerJob
from schemas.process import unix_time

_LOCK_WAIT_S = 120.0


def run_job(job: WorkerJob, preemption_notice: Callable[[], bool] | None = None) -> None:
    """Complete the job's stages, skipping what is finished; StopRequestedError if the run was asked to stop.

    Nothing is begun if the driver has given this attempt up. It saves and stops when `preemption_notice` says that the
    machine is about to be taken away. A failure is written beside the stage before it is raised, so that the driver can
    tell people about it. A worker that gets no further for `job.hang_limit_s` writes that, and ends its process.
    """
    prepare_process(job.training)
    world, store = current_world(job.use_gpu, preemption_notice), None
    scratch = cache_dir_of(job.cache_dir) / SCRATCH_FOLDER
    with working_folder(job, scratch, sends_all=world.is_rank_zero) as (job, uploader):
        called_off = world.is_rank_zero and is_told(Path(job.run_dir) / STOP_FILE, job.owner, job.attempt)
        if world.broadcast_bool(called_off):
            raise StopRequestedError("the driver stopped, or gave this attempt up, before it began")
        progress = _Progress(job, uploader)
        with progress.failures_written(), Watchdog(job.hang_limit_s, progress.end_hanging) as watchdog:
            world = _watched(world, watchdog, uploader)
            for stage in [each for each in (job.draw, job.train) if each is not None]:
                finished = world.is_rank_zero and finished_result(Path(job.run_dir), stage) is not None
                if world.broadcast_bool(finished):  # a training also if the ticket drawn again has the bits it had
                    continue
                progress.stage = stage.name
                if store is None:
                    store = _open_store(job, stage.name, world)
                world.reset_peak_memory()
                with _only_worker(job, stage.name, world):
                    StageLoop(_make_stage(job, stage, store, world)).run()
                if uploader is not None and world.size > 1:
                    _hand_on(uploader, world)


def _open_store(job: WorkerJob, first_stage: str, world: World) -> Store:
    """Open what the job denoises, and tell the driver that the job is at work."""
    if world.is_rank_zero:
        announce_start(job, first_stage)
    store = open_samples(job, cache_dir_of(job.cache_dir), world.device, lambda done, total: world.heartbeat())
    world.barrier()
    return store


def _make_stage(job: WorkerJob, plan: DrawStage | TrainStage, store: Store, world: World) -> Stage:
    kind = "draw" if isinstance(plan, DrawStage) else "train"
    randomness = StepRandomness(job.seed, kind, plan.timesteps, world.device)
    family = family_of(job, store.samples(), world.device, randomness.seed_for("data"))
    if isinstance(plan, DrawStage):
        return (Slim if job.draw_plan.method == "slim" else Draw)(job, plan, family, randomness, world)
    return Train(job, plan, family, randomness, world)


def _watched(world: World, watchdog: Watchdog, uploader: Uploader | None) -> World:
    """The world that tells the watchdog and the uploader of each step, and the uploader of what it deletes."""
    if uploader is None:
        return replace(world, on_heartbeat=watchdog.heartbeat)

    def heartbeat() -> None:
        watchdog.heartbeat()
        uploader.check()

    return replace(world, on_heartbeat=heartbeat, on_deleted=uploader.retire)


def _hand_on(uploader: Uploader, world: World) -> None:
    """Upload what rank zero has written and fetch it on the region's other workers."""
    if world.is_rank_zero:
        uploader.flush()
    world.barrier()
    if not world.is_rank_zero:
        uploader.fetch()


class _Progress:
    """The stage that a worker is at, beside which its failure is written."""

    def __init__(self, job: WorkerJob, uploader: Uploader | None) -> None:
        self._job, self._uploader = job, uploader
        self.stage = job.stages()[0]

    @contextmanager
    def failures_written(self) -> Iterator[None]:
        """Write any failure for the driver, then raise it; a requested stop is no failure."""
        try:
            yield
        except StopRequestedError:
            raise
        except BaseException as error:
            cause = error if self._uploader is None else self._uploader.cause_of(error)
            self._write_failure(cause)
            if cause is not error:
                raise cause from error
            raise

    def end_hanging(self) -> None:
        """Write that the worker hangs, then end the process."""
        try:
            self._write_failure(HangError(self._job.hang_limit_s))
            if self._uploader is not None:
                self._uploader.flush()
        finally:
            os._exit(1)  # without unwinding, in which the thread that hangs would have to take part

    def _write_failure(self, error: BaseException) -> None:
        """Any worker of the region may be the first to fail, and its failure is the one that explains the others'."""
        job, path = self._job, Path(self._job.run_dir) / self.stage / FAILURE_FILE
        told = read_if_whole(Failure, path)
        if told is not None and (told.owner, told.attempt) == (job.owner, job.attempt):
            return
        failure = Failure(
            stage=self.stage,
            attempt=job.attempt,
            owner=job.owner,
            message=message_for_people(error),
            retryable=is_retryable(error),
            traceback="".join(traceback.format_exception(error)),
            at=unix_time(),
        )
        write_model(path, failure)


@contextmanager
def _only_worker(job: WorkerJob, stage: str, world: World) -> Iterator[None]:
    """Hold the stage's lock, so that a worker left over from before a crash cannot write beside this one."""
    if not world.is_rank_zero:
        yield
        return
    path = Path(job.run_dir) / stage / ".lock"
    make_folder(path.parent)
    held = (
        f"Stage {stage} is still held by another worker after {_LOCK_WAIT_S:.0f} s. "
        "Make sure that no other launch or resume of this run is going on."
    )
    with locked(path, _LOCK_WAIT_S, lambda: StageHeldError(held)):
        remove_leftovers(path.parent, below=True)
        yield


class Watchdog:
    """Calls `on_timeout` when `heartbeat` has not been called for `limit_s` seconds, counted from the start.

    A lock that is never freed, a collective operation whose neighbour is gone, or a device that no longer answers,
    holds the thread that asked for it; only another thread can notice.
    """

    def __init__(self, limit_s: float, on_timeout: Callable[[], None]) -> None:
        self._limit_s, self._on_timeout = limit_s, on_timeout
        self._last_heartbeat = 0.0
        self._over = Event()
        self._watching = Thread(target=self._watch, name="watchdog", daemon=True)

    def heartbeat(self) -> None:
        """Report progress: a step, or part of the preparation for the first."""
        self._last_heartbeat = time.monotonic()

    def __enter__(self) -> Self:
        self.heartbeat()
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._limit_s / 4)):
            if time.monotonic() - self._last_heartbeat > self._limit_s:
                self._on_timeout()
                return
