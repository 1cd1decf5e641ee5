"""The mask: one bit for each prunable channel, True where it is kept; how many a ratio removes; distances of masks."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from region_workers.pruning.groups import ChannelGroup
from schemas.errors import plan_error
from schemas.job import KeptChannels
from schemas.plan import DrawPlan

_ROUNDING = 1e-9


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


def removed_channels(channels: int, norm_groups: int, ratio: float) -> int:
    """Channels that `ratio` removes from a layer of `channels`; a multiple of `norm_groups` where that is not 0.

    n = C - int(C (1 - ratio)) under no norm; G floor(n / G) under GroupNorm(G), which gives the paper's published
    MACs (DESIGN). C (1 - ratio) counts as whole when it is within 1e-9 of a whole number: 0.1 + 0.2 is 0.3 here.
    """
    wanted = channels - math.floor(channels * (1 - ratio) + _ROUNDING)
    return wanted - wanted % norm_groups if norm_groups else wanted


def realised_ratio(groups: Sequence[ChannelGroup], ratio: float) -> float:
    """The share of all prunable channels that the target `ratio` really removes; 0 if there is no channel."""
    total = sum(group.size for group in groups)
    removed = sum(removed_channels(group.size, group.norm_groups, ratio) for group in groups)
    return removed / total if total else 0.0


def check_ratio(groups: Sequence[ChannelGroup], ratio: float, field: str) -> None:
    """Raise `PlanError`, naming `field`, if a ratio above 0 removes nothing or empties a layer.

    Removing nothing from the convolutions counts as nothing, though the time embedding, under no norm, always gives
    up a channel.
    """
    if not 0 <= ratio < 1:
        raise plan_error(field, ratio, "0 <= ratio < 1", "Change it.")
    removed = {group.root: removed_channels(group.size, group.norm_groups, ratio) for group in groups}
    widths = "model.block_out_channels" if any(group.norm_groups for group in groups) else "model.hidden_size"
    for group in groups:
        if removed[group.root] >= group.size:
            expected = f"a ratio that leaves a channel in every layer; it removes all {group.size} of {group.root}"
            raise plan_error(field, ratio, expected, f"Lower the ratio or raise {widths}.")
    normed = [group for group in groups if group.norm_groups] or list(groups)
    if ratio > 0 and not any(removed[group.root] for group in normed):
        smallest = min((group.norm_groups or 1) / group.size for group in normed)
        raise plan_error(
            field,
            ratio,
            f"about {smallest:.3g} or more, so that a layer under GroupNorm can give up one channel of each norm group",
            "Raise the ratio, raise model.block_out_channels, lower model.norm_num_groups, or set 0 to keep it dense.",
        )


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


def kept_at(groups: Sequence[ChannelGroup], ratio: float) -> dict[str, KeptChannels]:
    """`kept_channels` where only their number matters: the first of each norm group."""
    return kept_channels(groups, compute_mask(groups, [torch.zeros(group.size) for group in groups], ratio))


def _indices(side: Tensor | None) -> tuple[int, ...] | None:
    if side is None or bool(side.all()):
        return None
    return tuple(side.nonzero().flatten().tolist())
