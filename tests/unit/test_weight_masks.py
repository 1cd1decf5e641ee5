"""Which weights an update takes and gives, in layers larger than the sample that it looks at first."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from region_workers.pruning.weight_masks import moved_mask, random_mask

_WEIGHTS = 100_000  # a sample has every seventh


def _values(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(_WEIGHTS, generator=generator)
    place = torch.arange(_WEIGHTS)
    if kind == "few different":
        return values.round()
    if kind == "sorted":
        return values.sort().values
    if kind == "the sample the smallest":
        return torch.where(place % 7 == 0, 0.01 * values, values.abs() + 1)
    return values


@pytest.mark.parametrize("exchanged", [1, 700, 20_000, 50_000])
@pytest.mark.parametrize("growth", ["any", "few different", "sorted", "the sample the smallest"])
@pytest.mark.parametrize("weights", ["any", "few different", "sorted", "the sample the smallest"])
def test_the_smallest_leave_and_the_largest_come_of_equals_the_first(weights: str, growth: str, exchanged: int) -> None:
    mask = random_mask(torch.Size([_WEIGHTS]), 50_000, torch.Generator().manual_seed(1))
    moved = moved_mask(mask, _values(weights), exchanged, _values(growth).flip(0))
    assert torch.equal(moved, _by_sorting(mask, _values(weights), exchanged, _values(growth).flip(0)))


def test_at_random_any_places_are_as_likely_as_any_others() -> None:
    mask, generator = torch.arange(6) < 3, torch.Generator().manual_seed(2)
    found = Counter(tuple(moved_mask(mask, torch.ones(6), 3, generator).tolist()) for _ in range(4000))
    assert len(found) == 20  # all threes of six
    assert max(abs(often - 200) for often in found.values()) < 5 * 200**0.5


@pytest.mark.parametrize("exchanged", [0, 1, 700, 20_000, 50_000])
def test_at_random_the_largest_stay_and_so_many_come_from_everywhere(exchanged: int) -> None:
    mask, weights = torch.arange(_WEIGHTS) % 2 == 0, _values("any")
    moved = moved_mask(mask, weights, exchanged, torch.Generator().manual_seed(2))
    assert moved.count_nonzero() == 50_000
    came = moved & ~mask
    expected = exchanged * 25_000 / (50_000 + exchanged)
    assert abs(came[:50_000].count_nonzero() - expected) <= 5 * expected**0.5
    assert abs(came[50_000:].count_nonzero() - expected) <= 5 * expected**0.5
    largest = torch.where(mask, weights.abs(), -1).topk(50_000 - exchanged).indices
    assert moved[largest].all()


def _by_sorting(mask: Tensor, weights: Tensor, exchanged: int, growth: Tensor) -> Tensor:
    kept = mask.numpy()
    by_weight = np.lexsort((np.arange(_WEIGHTS), -weights.abs().numpy(), ~kept))  # kept ones first, the largest of them
    stay = np.zeros(_WEIGHTS, dtype=bool)
    stay[by_weight[: kept.sum() - exchanged]] = True
    by_growth = np.lexsort((np.arange(_WEIGHTS), -growth.abs().numpy(), stay))
    stay[by_growth[:exchanged]] = True
    return torch.from_numpy(stay)
