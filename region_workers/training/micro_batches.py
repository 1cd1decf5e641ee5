"""The batch of a step as one worker sees it: its share of the rows, cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from region_workers.training.device import World
from region_workers.training.family import Batch, ModelFamily
from region_workers.training.randomness import StepRandomness, set_dropout_rows, use_batch_dropout
from region_workers.training.timesteps import TimestepSampler
from schemas.plan import TrainingPlan


class MicroBatch(NamedTuple):
    """What goes through the network at once: samples, a timestep [B] and noise [B, ...] for each."""

    batch: Batch
    timesteps: torch.Tensor
    noise: torch.Tensor
    is_last: bool


def worker_rows(batch_size: int, parts: int, world: World) -> list[slice]:
    """This worker's rows of the global batch, in equal parts."""
    size = batch_size // (world.size * parts)
    starts = range(world.rank * size * parts, (world.rank + 1) * size * parts, size)
    return [slice(start, start + size) for start in starts]


class MicroBatches:
    """The micro-batches of any step, `training.gradient_accumulation` of them a worker.

    Replaces the network's dropout by one that knows which rows of the global batch it sees.
    """

    def __init__(
        self,
        network: nn.Module,
        family: ModelFamily,
        randomness: StepRandomness,
        sampler: TimestepSampler,
        training: TrainingPlan,
        world: World,
    ) -> None:
        self._family, self._randomness, self._sampler = family, randomness, sampler
        self._batch_size, self._device = training.batch_size, world.device
        self._rows = worker_rows(training.batch_size, training.gradient_accumulation, world)
        self._dropouts = use_batch_dropout(network)

    def of_step(self, step: int) -> Iterator[MicroBatch]:
        """One after another; the generators of dropout are set for the one that was given last."""
        generator = self._randomness.generator(step)
        timesteps_B = self._sampler.draw(self._batch_size, generator)
        noise: torch.Tensor | None = None
        for rows in self._rows:
            set_dropout_rows(self._dropouts, rows, self._batch_size, self._device)
            self._randomness.seed_network(step)
            batch = self._family.batch(step, rows)
            if noise is None:
                shape = (self._batch_size, *batch.clean.shape[1:])
                noise = torch.randn(shape, generator=generator, device=self._device)
            yield MicroBatch(batch, timesteps_B[rows], noise[rows], rows is self._rows[-1])
