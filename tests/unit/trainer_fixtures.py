"""Trainers on the tiny plan's first draw, and their state after some steps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import MakeJobs, MakePlan, store_of
from torch import nn

from region_workers.training.device import World, prepare_process
from region_workers.training.diffusion import TimestepSampler
from region_workers.training.family import ModelFamily, family_of
from region_workers.training.randomness import StepRandomness
from region_workers.training.trainer import Trainer
from schemas.plan import Plan

MakeTrainer = Callable[..., Trainer]


@dataclass(frozen=True)
class Parts:
    """What a trainer is made of."""

    plan: Plan
    network: nn.Module
    family: ModelFamily
    randomness: StepRandomness
    sampler: TimestepSampler
    world: World


MakeParts = Callable[..., Parts]


@pytest.fixture
def make_parts(
    tiny_plan: MakePlan,
    make_jobs: MakeJobs,
    cache_dir: Path,
    tmp_path: Path,
) -> MakeParts:
    """The parts of the tiny plan's first draw with `key=value` changes, always from the same start."""

    def make(*changes: str) -> Parts:
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
        return Parts(plan, family.build_dense(), family, randomness, sampler, world)

    return make


@pytest.fixture
def make_trainer(make_parts: MakeParts) -> MakeTrainer:
    """A trainer of `make_parts`."""

    def make(*changes: str) -> Trainer:
        parts = make_parts(*changes)
        return Trainer(
            parts.network,
            parts.family,
            parts.randomness,
            parts.sampler,
            parts.plan.training,
            parts.world,
            sparsity=parts.plan.sparsity,
            total_steps=parts.plan.training.steps,
        )

    return make


def state_after(trainer: Trainer, steps: int) -> dict[str, torch.Tensor]:
    """A copy of everything a checkpoint would hold, `steps` updates from now."""
    for _ in range(steps):
        trainer.train_step()
    return {name: tensor.clone() for name, tensor in trainer.state_tensors().items()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Over all numbers of two states."""
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)
