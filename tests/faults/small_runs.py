"""Runs of a second: two regions of a tiny network, in the test's own process, and what they leave, by digest."""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from serial_cluster import SerialCluster

from ebdiff_orchestrator.plans.load import plan_from_values
from ebdiff_orchestrator.run.stages import Inputs, outline_jobs, worker_job
from region_workers.data.store import ensure_store
from region_workers.training.trainer import Trainer
from schemas.job import WorkerJob
from schemas.plan import Plan

REGIONS = ("low", "high")
SMALL: dict[str, Any] = {
    "name": "small",
    "model": {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 2},
    "regions": [
        {"name": "low", "train": [0, 520], "pruning_ratio": 0.5},
        {"name": "high", "train": [500, 1000], "pruning_ratio": 0.3},
    ],
    "draw": {"interval_steps": 1, "threshold": 0.5},
    "training": {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "ema_decay": 0.9},
    "sampling": {"steps": 2, "num_images": 2},
    "checkpointing": {"interval_steps": 2},
    "logging": {"interval_steps": 3},  # a row of metrics spans a checkpoint
}


def small_plan(*changes: str) -> Plan:
    """The plan of these runs, with `key=value` changes."""
    return plan_from_values(copy.deepcopy(SMALL), changes)


def small_jobs(run_dir: Path, cache_dir: Path, *changes: str) -> list[WorkerJob]:
    """The worker jobs of a small plan's run in this folder."""
    plan = small_plan(*changes)
    inputs = Inputs(ensure_store(plan.data, cache_dir).digest)
    return [worker_job(plan, outline, run_dir, inputs) for outline in outline_jobs(plan, inputs)]


def other_region(name: str) -> str:
    """The same path in the other region."""
    return name.replace("low", "high") if "low" in name else name.replace("high", "low")


class WouldStartError(Exception):
    """A job would have been started: the message names it."""


class UnwillingCluster(SerialCluster):
    """Starts nothing: the first job breaks the launch off."""

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        raise WouldStartError(job.name)


class HarmingCluster(SerialCluster):
    """Does harm to the run once, as soon as the worker of a job has ended, before the driver sees what it left."""

    def __init__(self, after: str, harm: Callable[[Path], None]) -> None:
        super().__init__()
        self._after, self._harm = after, harm

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        future = super().run_job(job, workers)
        if job.name == self._after and self.jobs.count(job.name) == 1:
            self._harm(Path(job.run_dir))
        return future


class PowerCutError(RuntimeError):
    """What ends a worker in `power_cut`."""


@contextmanager
def power_cut(before_step: int) -> Iterator[None]:
    """Within it, every training breaks off before this step."""
    train_step = Trainer.train_step

    def cut(trainer: Trainer) -> None:
        if trainer.step == before_step:
            raise PowerCutError(f"before step {before_step}")
        train_step(trainer)

    with patch.object(Trainer, "train_step", cut):
        yield


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """The steps made within it, in order; a step is counted from 0."""
    train_step, steps = Trainer.train_step, []

    def count(trainer: Trainer) -> None:
        steps.append(trainer.step)
        train_step(trainer)

    with patch.object(Trainer, "train_step", count):
        yield steps
