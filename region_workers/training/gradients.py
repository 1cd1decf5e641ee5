"""Gradients for Taylor and diff-pruning importance, added up over the timesteps of a region."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch
from torch import nn

from region_workers.training.diffusion import diffusion_loss
from region_workers.training.family import Batch, ModelFamily
from region_workers.training.randomness import StepRandomness
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
    between_passes: Callable[[], None],
) -> dict[str, torch.Tensor]:
    """The summed gradient of the unweighted loss, by parameter name; the network is left as it was found.

    One batch and one noise serve every timestep and every mask of a draw, and nothing is dropped out, as in the
    released code: masks then differ by their weights alone. The batch is cut in `training.gradient_accumulation`
    passes, as in training; `between_passes` is called before each. With diff-pruning (NeurIPS 2023, arXiv 2305.10924)
    the sum ends at the first timestep whose loss, on its first pass, is under `plan.diff_pruning_threshold` of the
    largest so far.
    """
    passes = training.gradient_accumulation
    share = training.batch_size // passes
    parts = [_part(family, randomness, slice(index * share, (index + 1) * share)) for index in range(passes)]
    largest = 0.0
    with _evaluating(network):
        for timestep, (index, (batch, noise_BCHW)) in product(
            importance_timesteps(timesteps, plan.importance_timesteps), enumerate(parts)
        ):
            between_passes()
            predict = partial(family.predict, network, batch)
            timesteps_B = torch.full((share,), timestep, device=noise_BCHW.device)
            loss = diffusion_loss(predict, batch.clean, timesteps_B, noise_BCHW, family.alphas_cumprod) / passes
            if plan.importance == "diff-pruning" and index == 0:
                value = float(loss.detach())
                largest = max(largest, value)
                if value < plan.diff_pruning_threshold * largest:
                    break
            loss.backward()  # type: ignore[no-untyped-call]
        return {name: p.grad.detach() for name, p in network.named_parameters() if p.grad is not None}


def _part(family: ModelFamily, randomness: StepRandomness, rows: slice) -> tuple[Batch, torch.Tensor]:
    """Rows of the draw's first batch, and their noise."""
    batch = family.batch(0, rows)
    generator = randomness.generator(rows.start, "importance-noise")
    clean_BCHW = batch.clean
    return batch, torch.randn(clean_BCHW.shape, generator=generator, device=clean_BCHW.device)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Within it the network is in evaluation mode; before and after it there are no gradients."""
    was_training = network.training
    network.zero_grad(set_to_none=True)
    network.eval()
    try:
        yield
    finally:
        network.zero_grad(set_to_none=True)
        network.train(was_training)
