"""Sparse-to-sparse training (arXiv 2504.21380): the masks of an expert's weights, still (Static-DM) or moving."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from region_workers.pruning.densities import kept_counts, maskable_shapes
from region_workers.pruning.weight_masks import moved_mask, random_mask
from region_workers.training.mask_moves import MaskMoves
from region_workers.training.randomness import StepRandomness
from schemas.sparsity import SparsityPlan

_PREFIX = "mask."


class SparseWeights:
    """The masks M of a network's weights θ, by parameter name: bool, one byte a weight. Dense layers have none.

    Without a plan, or at a sparsity of 0, every layer is dense, and nothing here does anything.

    θ is 0 where it is masked; the forward pass knows nothing of it, so autograd gives the dense gradient. The first
    masks follow from the seed, those of random growth from seed, layer and step: alike on every worker.
    """

    def __init__(self, network: nn.Module, plan: SparsityPlan | None, steps: int, randomness: StepRandomness) -> None:
        self._plan, self._steps, self._randomness = plan, steps, randomness
        shapes = {} if plan is None else maskable_shapes(network)
        self._kept = {} if plan is None else kept_counts(shapes, plan.sparsity, plan.distribution)
        self._weights = {n: w for n, w in network.named_parameters() if self._kept.get(n, w.numel()) < w.numel()}
        self.masks = {
            name: torch.empty_like(weight, dtype=torch.bool).copy_(self._first_mask(name))
            for name, weight in self._weights.items()
        }
        self.moves = MaskMoves(self.masks)
        self.mask_weights()

    @torch.no_grad()
    def mask_weights(self) -> None:
        """θ·M."""
        for name, mask in self.masks.items():
            self._weights[name].mul_(mask)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """g·M."""
        for name, mask in self.masks.items():
            gradient = self._weights[name].grad
            assert gradient is not None, name
            gradient.mul_(mask)

    @torch.no_grad()
    def update(self, step: int, optimizer: torch.optim.Optimizer, ema: Mapping[str, torch.Tensor] | None) -> None:
        """Move the masks, if it is time, by the weights and the dense gradient as they are now.

        What leaves and what comes is 0 then, also in the gradient, Adam's moments and the EMA.
        """
        share = 0.0 if self._plan is None else exchanged_share(self._plan, step, self._steps)
        is_random = self._plan is not None and self._plan.method == "magran"
        counts = []
        for name, mask in self.masks.items() if share else ():
            weight = self._weights[name]
            assert weight.grad is not None, name
            growth = self._randomness.generator(step, f"growth of {name}") if is_random else weight.grad
            moved = moved_mask(mask, weight, int(share * self._kept[name]), growth)
            counts.append(self.moves.count(name, mask, moved))
            stayed = (mask & moved).to(weight.dtype)
            mask.copy_(moved)
            state = optimizer.state[weight]
            for values in (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"], *((ema[name],) if ema else ())):
                values.mul_(stayed)
        if counts:
            self.moves.note(step, counts)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        return {_PREFIX + name: mask for name, mask in self.masks.items()} | self.moves.state_tensors()

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on with the masks of `state_tensors`."""
        for name, mask in self.masks.items():
            mask.copy_(tensors[_PREFIX + name])
        self.moves.load_state_tensors(tensors)

    def _first_mask(self, name: str) -> torch.Tensor:
        generator = self._randomness.generator(0, f"first mask of {name}")
        return random_mask(self._weights[name].shape, self._kept[name], generator)


def exchanged_share(plan: SparsityPlan, step: int, steps: int) -> float:
    """p(t): the share of a layer's kept weights that is exchanged in the step after `step` of `steps`; 0: no update."""
    last_step = int(plan.stop_share * steps)
    if plan.method == "static" or step == 0 or step % plan.interval_steps or step >= last_step:
        return 0.0
    ratio = plan.prune_ratio
    if ratio is None:
        ratio = 0.5 if plan.sparsity <= 0.5 else 0.05
    return ratio * (1 + math.cos(math.pi * step / last_step)) / 2 if plan.decay == "cosine" else ratio
