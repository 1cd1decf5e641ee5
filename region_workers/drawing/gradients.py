"""Gradients for Taylor and diff-pruning importance, added up over the timesteps of a region."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import nn

from region_workers.family import ModelFamily
from region_workers.randomness import StepRandomness
from schemas.plan import DrawPlan, TrainingPlan


def importance_timesteps(timesteps: tuple[int, int], count: int | None) -> list[int]:
    """`count` timesteps evenly spaced in [start, stop), rising; all of them if None or more than there are."""
    start, stop = timesteps
    total = stop - start
    if count is None or count >= total:
        return list(range(start, stop))
    return [start + (index * total) // count for index in range(count)]


def accumulate_importance_gradients(
    network: nn.Module,
    family: ModelFamily,
    randomness: StepRandomness,
    timesteps: tuple[int, int],
    plan: DrawPlan,
    training: TrainingPlan,
    step: int,
    between_passes: Callable[[], None],
) -> dict[str, torch.Tensor]:
    """The summed gradient of the loss on this step's batch, by parameter name; the network's own stay empty.

    The batch is cut in `training.gradient_accumulation` passes, as in training; `between_passes` is called before each.
    With diff-pruning (NeurIPS 2023, arXiv 2305.10924) the sum ends at the first timestep whose loss, on its first
    pass, is under `plan.diff_pruning_threshold` of the largest so far.
    """
    network.zero_grad(set_to_none=True)
    passes = training.gradient_accumulation
    share = training.batch_size // passes
    largest = 0.0
    for timestep, index in product(importance_timesteps(timesteps, plan.importance_timesteps), range(passes)):
        between_passes()
        randomness.seed_network(step, rank=0)
        clean = family.batch(step, slice(index * share, (index + 1) * share))
        generator = randomness.generator(step, f"importance-{timestep}-{index}")
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        bf16 = training.precision == "bf16"
        with torch.autocast(clean.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = family.loss(network, clean, torch.full((share,), timestep, device=clean.device), noise) / passes
        if plan.importance == "diff-pruning" and index == 0:
            value = float(loss.detach())
            largest = max(largest, value)
            if value < plan.diff_pruning_threshold * largest:
                break
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad.detach() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return gradients
