"""Gradients for Taylor and diff-pruning importance, added up over the timesteps of a region."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import nn

from region_workers.dropout import share_dropout, take_rows
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
    """The summed gradient of the unweighted loss on this step's batch, by parameter name; the network's own stay empty.

    The batch is cut in `training.gradient_accumulation` passes, as in training; `between_passes` is called before each.
    With diff-pruning (NeurIPS 2023, arXiv 2305.10924) the sum ends at the first timestep whose loss, on its first
    pass, is under `plan.diff_pruning_threshold` of the largest so far.
    """
    network.zero_grad(set_to_none=True)
    dropouts = share_dropout(network)
    passes = training.gradient_accumulation
    share = training.batch_size // passes
    largest = 0.0
    for timestep, index in product(importance_timesteps(timesteps, plan.importance_timesteps), range(passes)):
        between_passes()
        rows = slice(index * share, (index + 1) * share)
        take_rows(dropouts, rows, training.batch_size, next(network.parameters()).device)
        randomness.seed_network(step, "importance-network")
        batch = family.batch(step, rows)
        generator = randomness.generator(step, f"importance-{timestep}-{index}")
        device = batch.clean.device
        noise = torch.randn(batch.clean.shape, generator=generator, device=device)
        bf16 = training.precision == "bf16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            timesteps_B = torch.full((share,), timestep, device=device)
            loss = family.errors(network, batch, timesteps_B, noise).mean() / passes
        if plan.importance == "diff-pruning" and index == 0:
            value = float(loss.detach())
            largest = max(largest, value)
            if value < plan.diff_pruning_threshold * largest:
                break
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad.detach() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return gradients
