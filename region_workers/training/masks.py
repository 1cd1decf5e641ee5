"""The masks of a dense network as it is now, and the gradients that some importances rank its channels by."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch
from torch import nn

from region_workers.pruning.groups import ChannelGroup
from region_workers.pruning.importance import channel_scores, sequential_masks
from region_workers.pruning.mask import compute_mask
from region_workers.training.diffusion import diffusion_loss
from region_workers.training.family import Batch
from region_workers.training.trainer import Trainer
from schemas.plan import DrawPlan


def mask_maker(
    groups: Sequence[ChannelGroup],
    trainer: Trainer,
    plan: DrawPlan,
    between_passes: Callable[[], None],
) -> Callable[[float], torch.Tensor]:
    """From a pruning ratio to the mask of the trainer's network; computes what serves every ratio at once.

    `between_passes` is called before each pass through the network.
    """
    gradients, weights = None, trainer.final_weights()  # a draw by raw weights keeps no EMA
    if plan.importance in ("taylor", "diff-pruning"):
        with trainer.using_weights(trainer.ema):
            gradients = accumulate_importance_gradients(trainer, plan, between_passes)
    if plan.scoring == "sequential" and plan.importance != "random":  # whose scores know nothing of the others
        return sequential_masks(groups, weights, plan.importance, gradients, plan.gradient_rule)
    generator = trainer.randomness.generator(trainer.step, "random-importance")
    scores = channel_scores(groups, weights, plan.importance, gradients, generator, plan.gradient_rule)
    return partial(compute_mask, groups, scores)


def importance_timesteps(timesteps: tuple[int, int], count: int | None) -> list[int]:
    """`count` timesteps evenly spaced in [start, stop), rising; all of them if None or more than there are."""
    start, stop = timesteps
    total = stop - start
    if count is None or count >= total:
        return list(range(start, stop))
    return [start + (index * total) // count for index in range(count)]


def accumulate_importance_gradients(
    trainer: Trainer, plan: DrawPlan, between_passes: Callable[[], None]
) -> dict[str, torch.Tensor]:
    """The summed gradient of the unweighted loss, by parameter name; the network is left as it was found.

    One batch and one noise serve every timestep and every mask of a draw, and nothing is dropped out, as in the
    released code: masks then differ by their weights alone. The batch is cut in `training.gradient_accumulation`
    passes, as in training; `between_passes` is called before each. With diff-pruning (NeurIPS 2023, arXiv 2305.10924)
    the sum ends at the first timestep whose loss, on its first pass, is under `plan.diff_pruning_threshold` of the
    largest so far.
    """
    network, family, passes = trainer.network, trainer.family, trainer.training.gradient_accumulation
    share = trainer.training.batch_size // passes
    parts = [_first_batch(trainer, slice(index * share, (index + 1) * share)) for index in range(passes)]
    timesteps = importance_timesteps(trainer.sampler.span, plan.importance_timesteps)
    largest = 0.0
    with _evaluating(network):
        for timestep, (index, (batch, noise)) in product(timesteps, enumerate(parts)):
            between_passes()
            predict = partial(family.predict, network, batch)
            timesteps_B = torch.full((share,), timestep, device=noise.device)
            schedule, weights = family.alphas_cumprod, batch.value_weights
            loss = diffusion_loss(predict, batch.clean, timesteps_B, noise, schedule, None, weights) / passes
            if plan.importance == "diff-pruning" and index == 0:
                value = float(loss.detach())
                largest = max(largest, value)
                if value < plan.diff_pruning_threshold * largest:
                    break
            loss.backward()  # type: ignore[no-untyped-call]
        return {name: p.grad.detach() for name, p in network.named_parameters() if p.grad is not None}


def _first_batch(trainer: Trainer, rows: slice) -> tuple[Batch, torch.Tensor]:
    """Rows of the draw's first batch, and their noise."""
    batch = trainer.family.batch(0, rows)
    generator = trainer.randomness.generator(rows.start, "importance-noise")
    return batch, torch.randn(batch.clean.shape, generator=generator, device=batch.clean.device)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put the network in evaluation mode for a while; gradients are cleared before and after."""
    was_training = network.training
    network.zero_grad(set_to_none=True)
    network.eval()
    try:
        yield
    finally:
        network.zero_grad(set_to_none=True)
        network.train(was_training)
