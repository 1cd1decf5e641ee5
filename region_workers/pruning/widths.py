"""How many channels a pruning ratio removes from a group: the paper's rule, as numbers."""

import math
from collections.abc import Sequence

from region_workers.pruning.groups import ChannelGroup
from schemas.errors import plan_error

_ROUNDING = 1e-9


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
            raise plan_error(
                field,
                ratio,
                f"a ratio that leaves a channel in every layer; it removes all {group.size} of {group.root}",
                f"Lower the ratio or raise {widths}.",
            )
    normed = [group for group in groups if group.norm_groups] or list(groups)
    if ratio > 0 and not any(removed[group.root] for group in normed):
        smallest = min((group.norm_groups or 1) / group.size for group in normed)
        raise plan_error(
            field,
            ratio,
            f"about {smallest:.3g} or more, so that a layer under GroupNorm can give up one channel of each norm group",
            "Raise the ratio, raise model.block_out_channels, lower model.norm_num_groups, or set 0 to keep it dense.",
        )
