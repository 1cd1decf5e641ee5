"""Sparse-to-sparse training (arXiv 2504.21380): the masks of an expert's weights, still (Static-DM) or moving.

How they move is counted at every update: what `ebdiff tickets` shows of a training.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from region_workers.pruning.weight_masks import kept_counts, maskable_shapes, moved_mask, random_mask
from region_workers.storage.tables import MASK_MOVES
from region_workers.training.randomness import StepRandomness
from schemas.experiment import SparsityPlan

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


Counts = tuple[int, int, int]  # of one mask: exchanged, replaced, ever kept, as MASK_MOVES has them

_NOW, _FIRST, _EVER = 1, 2, 4


class RecordedMask:
    """The mask of one layer's weights and what is known of those before it, in one byte a weight, on its device.

    A bit each: kept now, by the first mask, by any so far.
    """

    def __init__(self, weight: Tensor, first: Tensor) -> None:
        self._bits = torch.empty_like(weight, dtype=torch.uint8).copy_(first)
        self._bits.mul_(_NOW | _FIRST | _EVER)

    def ones(self) -> Tensor:
        """uint8: 1 where a weight is kept, else 0."""
        return self._bits & _NOW

    def kept(self) -> Tensor:
        return self._at(_NOW)

    def move(self, moved: Tensor) -> tuple[Tensor, Counts]:
        """Replace the mask by one of as many weights; which weights stay, bool, and the counts of the change."""
        stay, weights = self.kept().logical_and_(moved), _count(moved)
        was_first = self._at(_FIRST)
        replaced = _count(was_first) - _count(was_first.logical_and_(moved))
        self._bits.bitwise_and_(_FIRST | _EVER).bitwise_or_(moved.view(torch.uint8) * (_NOW | _EVER))
        return stay, (weights - _count(stay), replaced, _count(self._at(_EVER)))

    def ever_kept(self) -> Tensor:
        """uint8, on the host: a bit a weight."""
        return torch.from_numpy(np.packbits((self._bits & _EVER).cpu().numpy()))

    def _at(self, bit: int) -> Tensor:
        """bool: where the bit is set. A comparison takes seven times as long."""
        return (self._bits & bit).bitwise_right_shift_(bit.bit_length() - 1).view(torch.bool)

    def load(self, kept: Tensor, ever_kept: Tensor) -> None:
        """Go on from a checkpoint."""
        bits = np.unpackbits(ever_kept.cpu().numpy(), count=self._bits.numel())
        ever = torch.from_numpy(bits).view(self._bits.shape).to(self._bits.device).mul_(_EVER)
        self._bits.bitwise_and_(_FIRST).bitwise_or_(ever).bitwise_or_(kept.to(self._bits))


class MaskMoves:
    """What every update has made of the masks, by their counts of weights and of kept ones."""

    def __init__(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        self._names, self._sizes = list(sizes), list(sizes.values())
        self._steps: list[int] = []
        self._counts: list[npt.NDArray[np.int64]] = []  # an update, [masks, 3]
        self.note(0, [(0, 0, kept) for _, kept in self._sizes])

    def note(self, step: int, counts: Sequence[Counts]) -> None:
        """Record an update, made in the step after `step`, by the counts of every mask in order."""
        self._steps.append(step)
        self._counts.append(np.array(counts, dtype=np.int64).reshape(-1, 3))

    def replaced_share(self) -> float:
        """The share of the first masks' weights that the current masks do not keep."""
        return int(self._counts[-1][:, 1].sum()) / max(sum(kept for _, kept in self._sizes), 1)

    def table(self) -> pa.Table:
        """All updates so far, of the form MASK_MOVES."""
        updates, layers = len(self._steps), len(self._names)
        exchanged, replaced, ever_kept = np.concatenate(self._counts).T
        weights, kept = np.tile(np.array(self._sizes, dtype=np.int64).reshape(-1, 2), (updates, 1)).T
        columns = (np.repeat(self._steps, layers), self._names * updates)
        return pa.table([*columns, weights, kept, exchanged, replaced, ever_kept], schema=MASK_MOVES)

    def restore(self, table: pa.Table) -> None:
        counts = np.stack([table[name].to_numpy() for name in ("exchanged", "replaced", "ever_kept")], axis=1)
        self._steps = table["step"].to_numpy()[:: len(self._names)].tolist()
        self._counts = np.split(counts, len(self._steps))


def _count(places: Tensor) -> int:
    return int(np.count_nonzero(places.numpy()) if places.device.type == "cpu" else places.count_nonzero())


def exchanged_share(plan: SparsityPlan, step: int, steps: int) -> float:
    """p(t): the share of a layer's kept weights that is exchanged in the step after `step` of `steps`; 0: no update."""
    last_step = int(plan.stop_share * steps)
    if plan.method == "static" or step == 0 or step % plan.interval_steps or step >= last_step:
        return 0.0
    ratio = plan.prune_ratio
    if ratio is None:
        ratio = 0.5 if plan.sparsity <= 0.5 else 0.05
    return ratio * (1 + math.cos(math.pi * step / last_step)) / 2 if plan.decay == "cosine" else ratio
