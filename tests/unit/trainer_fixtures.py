"""Trainers on the tiny plan's first draw, their state after some steps, and its first job run whole."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import MakeJobs, MakePlan, store_of

from region_workers.training.device import World, prepare_process
from region_workers.training.diffusion import TimestepSampler
from region_workers.training.family import family_of
from region_workers.training.randomness import StepRandomness
from region_workers.training.trainer import Trainer
from region_workers.worker.run import run_job

MakeTrainer = Callable[..., Trainer]
RunFirstJob = Callable[..., Path]


@pytest.fixture
def make_trainer(tiny_plan: MakePlan, make_jobs: MakeJobs, cache_dir: Path, tmp_path: Path) -> MakeTrainer:
    """A trainer of the tiny plan's first draw with `key=value` changes, always from the same start."""

    def make(*changes: str) -> Trainer:
        plan = tiny_plan(*changes)
        job = make_jobs(plan, tmp_path)[0]
        assert job.draw is not None
        prepare_process(plan.training)
        world = World(torch.device("cpu"), 0, 1)
        randomness = StepRandomness(plan.seed, "draw", job.draw.timesteps, world.device)
        samples = store_of(plan, cache_dir).samples()
        family = family_of(job, samples, world.device, randomness.seed_for("data"))
        torch.manual_seed(0)
        sampler = TimestepSampler(job.draw.timesteps, plan.training.timesteps, plan.diffusion, world.device)
        return Trainer(
            family.build_dense(),
            family,
            randomness,
            sampler,
            plan.training,
            world,
            sparsity=plan.sparsity,
            total_steps=plan.training.steps,
        )

    return make


@pytest.fixture
def run_first_job(tiny_plan: MakePlan, make_jobs: MakeJobs, tmp_path: Path) -> RunFirstJob:
    """Runs the first job of the tiny plan with `key=value` changes; the run directory, below the test's own folder."""

    def run(*changes: str, into: str = "run") -> Path:
        run_job(make_jobs(tiny_plan(*changes), tmp_path / into)[0])
        return tmp_path / into

    return run


def state_after(trainer: Trainer, steps: int) -> dict[str, torch.Tensor]:
    """A copy of everything a checkpoint would hold, `steps` updates from now."""
    for _ in range(steps):
        trainer.train_step()
    return {name: tensor.clone() for name, tensor in trainer.state_tensors().items()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Over all numbers of two states."""
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)
