"""Gradients for Taylor and diff-pruning importance, added up over the timesteps of a region."""

from __future__ import annotations

import torch
from torch import nn

from region_workers.family import ModelFamily
from region_workers.randomness import StepRandomness
from schemas.plan import DrawPlan


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
    batch_size: int,
    step: int,
) -> dict[str, torch.Tensor]:
    """The summed gradient of the loss on this step's batch, by parameter name; the network's own stay empty.

    With diff-pruning (NeurIPS 2023, arXiv 2305.10924) the sum ends at the first timestep whose loss is under
    `plan.diff_pruning_threshold` of the largest loss so far.
    """
    network.zero_grad(set_to_none=True)
    clean = family.batch(step, slice(0, batch_size))
    largest = 0.0
    for timestep in importance_timesteps(timesteps, plan.importance_timesteps):
        randomness.seed_network(step, rank=0)
        generator = randomness.generator(step, f"importance-{timestep}")
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        loss = family.loss(network, clean, torch.full((batch_size,), timestep, device=clean.device), noise)
        if plan.importance == "diff-pruning":
            value = float(loss.detach())
            largest = max(largest, value)
            if value < plan.diff_pruning_threshold * largest:
                break
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad.detach() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return gradients
