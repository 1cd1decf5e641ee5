"""Sparse-to-sparse training (arXiv 2504.21380): the masks of an expert's weights, still (Static-DM) or moving."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from region_workers.pruning.weight_masks import kept_counts, maskable_shapes, moved_mask, random_mask
from region_workers.training.mask_moves import MaskMoves, RecordedMask
from region_workers.training.randomness import StepRandomness
from schemas.sparsity import SparsityPlan

_PREFIX, _EVER_KEPT = "mask.", "ever_kept."


class SparseWeights:
    """The masks M of a network's weights θ, by parameter name: one byte a weight. Dense layers have none.

    Without a plan, or at a sparsity of 0, every layer is dense, and nothing here does anything.

    θ is 0 where it is masked; the forward pass knows nothing of it, so autograd gives the dense gradient. The first
    masks follow from the seed, those of random growth from seed, layer and step: alike on every worker.
    """

    def __init__(self, network: nn.Module, plan: SparsityPlan | None, steps: int, randomness: StepRandomness) -> None:
        self._plan, self._steps, self._randomness = plan, steps, randomness
        shapes = {} if plan is None else maskable_shapes(network)
        self._kept = {} if plan is None else kept_counts(shapes, plan.sparsity, plan.distribution)
        self._weights = {n: w for n, w in network.named_parameters() if self._kept.get(n, w.numel()) < w.numel()}
        self._masks = {name: RecordedMask(weight, self._first_mask(name)) for name, weight in self._weights.items()}
        self.moves = MaskMoves({name: (w.numel(), self._kept[name]) for name, w in self._weights.items()})
        self.mask_weights()

    @property
    def is_sparse(self) -> bool:
        return bool(self._masks)

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """A copy of the masks, bool."""
        return {name: mask.kept() for name, mask in self._masks.items()}

    @torch.no_grad()
    def mask_weights(self) -> None:
        """θ·M."""
        for name, mask in self._masks.items():
            self._weights[name].mul_(mask.ones())

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """g·M."""
        for name, mask in self._masks.items():
            gradient = self._weights[name].grad
            assert gradient is not None, name
            gradient.mul_(mask.ones())

    @torch.no_grad()
    def update(self, step: int, optimizer: torch.optim.Optimizer, ema: Mapping[str, torch.Tensor] | None) -> None:
        """Move the masks, if it is time, by the weights and the dense gradient as they are now.

        What leaves and what comes is 0 then, also in the gradient, Adam's moments and the EMA.
        """
        share = 0.0 if self._plan is None else exchanged_share(self._plan, step, self._steps)
        is_random = self._plan is not None and self._plan.method == "magran"
        counts = []
        for name, mask in self._masks.items() if share else ():
            weight = self._weights[name]
            assert weight.grad is not None, name
            growth = self._randomness.generator(step, f"growth of {name}") if is_random else weight.grad
            stay, count = mask.move(moved_mask(mask.kept(), weight, int(share * self._kept[name]), growth))
            stayed = stay.to(weight.dtype)
            counts.append(count)
            state = optimizer.state[weight]
            for values in (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"], *((ema[name],) if ema else ())):
                values.mul_(stayed)
        if counts:
            self.moves.note(step, counts)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        ever = {_EVER_KEPT + name: mask.ever_kept() for name, mask in self._masks.items()}
        return {_PREFIX + name: mask for name, mask in self.masks.items()} | ever

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, mask in self._masks.items():
            mask.load(tensors[_PREFIX + name], tensors[_EVER_KEPT + name])

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
