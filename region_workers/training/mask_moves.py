"""How the masks of a sparse network have moved, counted at every update: what `ebdiff tickets` shows of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from region_workers.storage.tables import MASK_MOVES

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
