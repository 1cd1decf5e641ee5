"""The mask of one layer's weights: drawn at random with an exact count, and moved by an update that keeps the count."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_SIGN = 0x7FFFFFFF  # all bits but it: the bits of |x|, which as integers are in the order of the floats


def random_mask(shape: torch.Size, kept: int, generator: torch.Generator) -> Tensor:
    """bool of that shape, with `kept` places at random, on the generator's device."""
    keys = _random_keys(math.prod(shape), generator)
    return _largest(keys, torch.ones_like(keys, dtype=torch.bool), kept).view(shape)


def moved_mask(mask: Tensor, weights: Tensor, exchanged: int, growth: Tensor | torch.Generator) -> Tensor:
    """The mask after an update: the `exchanged` smallest of the kept weights leave, and as many places are taken.

    Taken are those of the largest |growth|, the dense gradient (RigL), or random ones (MagRan). What has just left may
    come back. Of equals the first, in the weight's own order, stays or comes. Weights and gradient are float32.
    """
    was_kept = mask.reshape(-1)
    kept = int(was_kept.count_nonzero())
    stays = _largest(_magnitude_keys(weights), was_kept, kept - exchanged)
    keys = _magnitude_keys(growth) if isinstance(growth, Tensor) else _random_keys(stays.numel(), growth)
    return (stays | _largest(keys, ~stays, exchanged)).view(mask.shape)


def _largest(keys: Tensor, among: Tensor, count: int) -> Tensor:
    """bool [n]: the `count` largest of the keys, int32 [n] and not negative, that are `among`; of equals the first."""
    if count == 0:
        return torch.zeros_like(among)
    # The others come last, all of different keys: numpy takes 20 times as long where very many are equal.
    others = torch.arange(-1, -keys.numel() - 1, -1, dtype=keys.dtype, device=keys.device)
    all_ones = among.to(keys.dtype).neg_()  # among them, or else no bits: so bits choose, five times as fast as `where`
    keys = (keys ^ others).bitwise_and_(all_ones).bitwise_xor_(others)
    threshold = _kth_largest(keys, count)
    chosen = keys >= threshold
    if int(chosen.count_nonzero()) > count:
        above = keys > threshold
        ties = chosen & ~above
        chosen = above | (ties & (ties.cumsum(0) <= count - above.sum()))
    return chosen


def _kth_largest(keys: Tensor, k: int) -> Tensor:
    """On a CPU by numpy, which is many times as fast."""
    if keys.device.type == "cpu":
        place = keys.numel() - k
        return torch.from_numpy(np.partition(keys.numpy(), place)[place : place + 1])
    return keys.topk(k, sorted=False).values.amin()


def _magnitude_keys(values: Tensor) -> Tensor:
    return values.detach().reshape(-1).view(torch.int32) & _SIGN


def _random_keys(count: int, generator: torch.Generator) -> Tensor:
    """Two of them from each 64 random bits."""
    bits = torch.empty(count // 2 + 1, dtype=torch.int64, device=generator.device)
    return bits.random_(-(2**63), None, generator=generator).view(torch.int32)[:count] & _SIGN
