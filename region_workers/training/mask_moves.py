"""How the masks of a sparse network have moved, counted at every update: what `ebdiff tickets` shows of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from region_workers.storage.tables import MASK_MOVES

_PREFIX = "ever_kept."
Bits = npt.NDArray[np.uint8]
Counts = tuple[int, int, int]  # of one mask: exchanged, replaced, ever kept, as MASK_MOVES has them


class MaskMoves:
    """The first masks, which are those that it is made of, and what every update has made of them.

    Two bits a weight stay on the host for it: of the first masks, and of all places that were ever kept.
    """

    def __init__(self, masks: Mapping[str, torch.Tensor]) -> None:
        self._first = {name: _packed(mask) for name, mask in masks.items()}
        self._ever_kept = {name: bits.copy() for name, bits in self._first.items()}
        self._sizes = [(mask.numel(), _ones(self._first[name])) for name, mask in masks.items()]
        self._steps: list[int] = []
        self._counts: list[npt.NDArray[np.int64]] = []  # an update, [masks, 3]
        self.note(0, [(0, 0, kept) for _, kept in self._sizes])

    def count(self, name: str, before: torch.Tensor, after: torch.Tensor) -> Counts:
        """What an update of that mask did. Updates of different masks may be counted at once."""
        now, ever = _packed(after), self._ever_kept[name]
        np.bitwise_or(ever, now, out=ever)
        return _ones(_packed(before) & ~now), _ones(self._first[name] & ~now), _ones(ever)

    def note(self, step: int, counts: Sequence[Counts]) -> None:
        """An update in the step after `step`, by the counts of all masks, in their order."""
        self._steps.append(step)
        self._counts.append(np.array(counts, dtype=np.int64).reshape(-1, 3))

    def replaced_share(self) -> float:
        """Of the weights that the first masks kept, the share that these do not."""
        return int(self._counts[-1][:, 1].sum()) / max(sum(kept for _, kept in self._sizes), 1)

    def table(self) -> pa.Table:
        """All updates so far, of the form MASK_MOVES."""
        updates, layers = len(self._steps), len(self._first)
        exchanged, replaced, ever_kept = np.concatenate(self._counts).T
        weights, kept = np.tile(np.array(self._sizes, dtype=np.int64).reshape(-1, 2), (updates, 1)).T
        columns = (np.repeat(self._steps, layers), list(self._first) * updates)
        return pa.table([*columns, weights, kept, exchanged, replaced, ever_kept], schema=MASK_MOVES)

    def restore(self, table: pa.Table) -> None:
        """Go on from the updates of `table`."""
        counts = np.stack([table[name].to_numpy() for name in ("exchanged", "replaced", "ever_kept")], axis=1)
        self._steps = table["step"].to_numpy()[:: len(self._first)].tolist()
        self._counts = np.split(counts, len(self._steps))

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """For a checkpoint, beside the table."""
        return {_PREFIX + name: torch.from_numpy(bits) for name, bits in self._ever_kept.items()}

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on with the places of `state_tensors`; a checkpoint of a version without them leaves the first masks'."""
        for name, bits in self._ever_kept.items():
            if _PREFIX + name in tensors:
                bits[:] = tensors[_PREFIX + name].numpy()


def _packed(mask: torch.Tensor) -> Bits:
    return np.packbits(mask.cpu().numpy())


def _ones(bits: Bits) -> int:
    return int(np.bitwise_count(bits).sum())
