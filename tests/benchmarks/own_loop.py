"""Training steps of the project, made as a worker makes them: for the benchmarks of a training step."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from bench import this_device, training_changes
from pictures import save_images

from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.run.stages import Inputs, outline_jobs, worker_job
from region_workers.data.store import ImageStore, ensure_store
from region_workers.training.device import World, prepare_process
from region_workers.training.diffusion import TimestepSampler
from region_workers.training.family import UNetFamily
from region_workers.training.randomness import StepRandomness
from region_workers.training.reporter import StageReporter
from region_workers.training.timing import network_at
from region_workers.training.trainer import Trainer
from schemas.job import WorkerJob
from schemas.plan import Plan

IMAGES = "images"


def plan_on_noise(preset: str, folder: Path, changes: Sequence[str]) -> Plan:
    """The preset, with images of noise that are written to `folder`: 16 batches of them."""
    plan = load_plan(preset, list(changes))
    save_images(folder / IMAGES, [(plan.data.resolution, plan.data.resolution)] * 16 * plan.training.batch_size)
    return load_plan(preset, [f"data.path={folder / IMAGES}", *changes])


def first_job(plan: Plan, folder: Path) -> tuple[WorkerJob, ImageStore]:
    """The job of the plan's first region, to run in `folder`, and its images, decoded there."""
    store = ensure_store(plan.data, folder / "cache")
    outline = outline_jobs(plan, Inputs(store.digest))[0]
    return worker_job(plan, outline, folder / "run", Inputs(store.digest)), store


def job_on_noise(options: argparse.Namespace, folder: Path, *changes: str) -> tuple[WorkerJob, ImageStore]:
    """A job of the command line's preset, so changed, on images of noise."""
    return first_job(plan_on_noise(options.preset, folder, [*training_changes(options), *changes]), folder)


class OwnLoop:
    """The trainer of a job's draw, or of an expert in its region if `ratio` or a sparsity is given.

    `step` is one turn of its loop. `log` turned off, no step is at a log interval.
    """

    def __init__(self, job: WorkerJob, store: ImageStore, ratio: float = 0.0, log: bool = True) -> None:
        assert job.draw is not None
        assert job.train is not None
        prepare_process(job.training)
        world = World(this_device(), 0, 1)
        randomness = StepRandomness(job.seed, "draw", job.draw.timesteps, world.device)
        family = UNetFamily(job, store.samples(), world.device, randomness.seed_for("data"))
        sampler = TimestepSampler(job.draw.timesteps, job.training.timesteps, job.diffusion, world.device)
        torch.manual_seed(job.seed)
        network = network_at(family, ratio)
        sparse = {"sparsity": job.train.sparsity, "total_steps": job.train.steps}
        self.trainer = Trainer(network, family, randomness, sampler, job.training, world, **sparse)
        logging = job.logging if log else job.logging.model_copy(update={"interval_steps": 1 << 40})
        job = job.model_copy(update={"logging": logging})
        self.reporter = StageReporter(job, job.draw.name, None, world)
        self.reporter.begin(0, [], 0.0)

    def step(self) -> None:
        """One update and its record."""
        self.trainer.train_step()
        self.reporter.after_step(self.trainer)
