"""The mask: one bit for each prunable channel, True where it is kept; and when masks have stopped changing."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from region_workers.pruning.groups import ChannelGroup
from region_workers.pruning.widths import removed_channels
from schemas.job import KeptChannels
from schemas.plan import DrawPlan


def prunable_bits(groups: Sequence[ChannelGroup]) -> int:
    """The length of the groups' masks: the sum of the groups' sizes."""
    return sum(group.size for group in groups)


@torch.no_grad()
def compute_mask(groups: Sequence[ChannelGroup], scores: Sequence[Tensor], ratio: float) -> Tensor:
    """The mask (prunable_bits,) that drops the lowest scores, evenly within each norm group; groups in order.

    Of equal scores the channel of the lower index stays. The mask is on the scores' device and nothing waits for it.
    """
    return torch.cat([group_mask(group, score, ratio) for group, score in zip(groups, scores, strict=True)])


def group_mask(group: ChannelGroup, scores: Tensor, ratio: float) -> Tensor:
    """One group's part of `compute_mask`, bool (channels,)."""
    chunks = group.norm_groups or 1
    kept = (group.size - removed_channels(group.size, group.norm_groups, ratio)) // chunks
    best_first = scores.view(chunks, -1).argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros(chunks, group.size // chunks, dtype=torch.bool, device=scores.device)
    return mask.scatter_(1, best_first[:, :kept], True).view(-1)


def mask_distance(a: Tensor, b: Tensor) -> float:
    """The share of bits in which two masks of equal length differ: the normalised Hamming distance (paper, 4.1)."""
    assert a.shape == b.shape, f"masks of {tuple(a.shape)} and {tuple(b.shape)} bits"
    return int((a != b).sum()) / a.numel() if a.numel() else 0.0


def queue_distances(masks: Sequence[Tensor], plan: DrawPlan) -> tuple[float, ...] | None:
    """Distance of the newest mask to each other mask in the queue, nearest in time first; None while it fills.

    `masks`: bool [bits], one an interval, oldest first; every `plan.queue_stride`-th stands in the queue, a FIFO
    (paper, 4.1).
    """
    queue = list(masks[:: -plan.queue_stride][: plan.queue_length])
    if len(queue) < plan.queue_length:
        return None
    return tuple(mask_distance(queue[0], older) for older in queue[1:])


def pack_mask(mask: Tensor) -> bytes:
    """The mask as the run's files hold it: eight bits a byte."""
    return np.packbits(mask.numpy()).tobytes()


def unpack_mask(packed: object, bits: object) -> Tensor:
    """The mask, bool (bits,), of what a row of a file holds."""
    assert isinstance(packed, bytes)
    assert isinstance(bits, int)
    return torch.from_numpy(np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=bits).astype(bool))


def kept_channels(groups: Sequence[ChannelGroup], mask: Tensor) -> dict[str, KeptChannels]:
    """The mask as kept channels of each layer (full module name), sorted, as indices into the dense layer.

    A norm's channels and an embedding's columns are its outputs. A side that keeps everything is None, a layer whose
    two sides do is left out.
    """
    assert mask.shape == (prunable_bits(groups),), f"a mask of {tuple(mask.shape)} bits for {prunable_bits(groups)}"
    sides: dict[tuple[str, bool], Tensor] = {}
    for group, bits in zip(groups, torch.split(mask.cpu(), [group.size for group in groups]), strict=True):
        for member in group.members:
            side = sides.setdefault(
                (member.layer, member.kind != "in"), torch.ones(member.layer_size, dtype=torch.bool)
            )
            side[member.indices] = bits
    layers: dict[str, KeptChannels] = {}
    for layer in dict.fromkeys(layer for layer, _ in sides):
        kept = KeptChannels(outputs=_indices(sides.get((layer, True))), inputs=_indices(sides.get((layer, False))))
        if kept != KeptChannels():
            layers[layer] = kept
    return layers


def _indices(side: Tensor | None) -> tuple[int, ...] | None:
    if side is None or bool(side.all()):
        return None
    return tuple(side.nonzero().flatten().tolist())
