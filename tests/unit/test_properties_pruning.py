"""What holds for every pruning: widths in whole norm groups, masks that pack and unpack, distances between them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebdiff_orchestrator.reports.masks import distance_matrix, kept_bits, pack
from region_workers.pruning.groups import ChannelGroup, Member
from region_workers.pruning.mask import (
    check_ratio,
    compute_mask,
    kept_channels,
    mask_distance,
    realised_ratio,
    removed_channels,
)
from schemas.errors import PlanError

fixed = settings(derandomize=True, deadline=None, max_examples=150, database=None)

ratios = st.floats(0, 1, exclude_max=True)
norm_groups = st.sampled_from([0, 1, 2, 4, 8, 32])


@st.composite
def widths(draw: st.DrawFn) -> tuple[int, int]:
    """Channels and their norm groups: a multiple of them."""
    groups = draw(norm_groups)
    return max(groups, 1) * draw(st.integers(1, 40)), groups


def _group(index: int, size: int, norm: int) -> ChannelGroup:
    return ChannelGroup(f"layer{index}", size, norm, (Member(f"layer{index}", "out", slice(None), size),))


@st.composite
def scored_groups(draw: st.DrawFn) -> tuple[list[ChannelGroup], list[torch.Tensor]]:
    """Some channel groups, and a score a channel."""
    groups, scores = [], []
    for index, (size, norm) in enumerate(draw(st.lists(widths(), min_size=1, max_size=4))):
        groups.append(_group(index, size, norm))
        seed = draw(st.integers(0, 2**32))
        scores.append(torch.randn(size, generator=torch.Generator().manual_seed(seed)).round(decimals=1))  # with ties
    return groups, scores


masks = st.lists(st.lists(st.booleans(), min_size=37, max_size=37), min_size=1, max_size=6)


@fixed
@given(widths(), ratios)
def test_whole_norm_groups_give_up_equally_many_channels_and_none_more_than_asked(
    width: tuple[int, int], ratio: float
) -> None:
    size, groups = width
    removed = removed_channels(size, groups, ratio)
    assert removed % (groups or 1) == 0
    assert 0 <= removed <= size * ratio + 1
    if removed == size:
        with pytest.raises(PlanError, match="leaves a channel in every layer"):
            check_ratio([_group(0, size, groups)], ratio, "ratio")


@fixed
@given(widths(), ratios, ratios)
def test_a_larger_ratio_never_keeps_more(width: tuple[int, int], a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert removed_channels(*width, low) <= removed_channels(*width, high)


@fixed
@given(scored_groups(), ratios)
def test_a_mask_keeps_the_best_of_each_norm_group_and_at_least_one(
    scored: tuple[list[ChannelGroup], list[torch.Tensor]], ratio: float
) -> None:
    groups, scores = scored
    try:
        check_ratio(groups, ratio, "ratio")
    except PlanError:
        return
    mask = compute_mask(groups, scores, ratio)
    assert mask.numel() == sum(group.size for group in groups)
    assert 1 - int(mask.sum()) / mask.numel() == pytest.approx(realised_ratio(groups, ratio))
    for group, score, bits in zip(groups, scores, mask.split([group.size for group in groups]), strict=True):
        chunks = group.norm_groups or 1
        kept = bits.view(chunks, -1)
        assert (kept.sum(1) == kept[0].sum()).all()
        assert kept[0].sum() >= 1
        for chunk, chunk_scores in zip(kept, score.view(chunks, -1), strict=True):
            if not chunk.all():
                assert chunk_scores[chunk].min() >= chunk_scores[~chunk].max()


@fixed
@given(scored_groups(), ratios)
def test_kept_channels_are_the_mask_s_bits(scored: tuple[list[ChannelGroup], list[torch.Tensor]], ratio: float) -> None:
    groups, scores = scored
    mask = compute_mask(groups, scores, ratio)
    kept = kept_channels(groups, mask)
    rebuilt = []
    for group in groups:
        outputs = kept[group.root].outputs if group.root in kept else None
        bits = (
            torch.ones(group.size, dtype=torch.bool) if outputs is None else torch.zeros(group.size, dtype=torch.bool)
        )
        if outputs is not None:
            bits[list(outputs)] = True
        rebuilt.append(bits)
    assert torch.equal(torch.cat(rebuilt), mask)


@fixed
@given(masks)
def test_packed_masks_keep_every_bit_and_distance(bits: list[list[bool]]) -> None:
    packed = pack([np.packbits(np.array(mask)).tobytes() for mask in bits])
    for mask, words in zip(bits, packed, strict=True):
        unpacked = np.unpackbits(np.frombuffer(words.tobytes(), np.uint8), count=len(mask)).astype(bool)
        assert unpacked.tolist() == mask
        assert kept_bits(words) == sum(mask)
    expected = [[mask_distance(torch.tensor(a), torch.tensor(b)) for b in bits] for a in bits]
    assert distance_matrix(packed, len(bits[0])).tolist() == expected


@fixed
@given(masks)
def test_the_distance_of_masks_is_a_metric(bits: list[list[bool]]) -> None:
    tensors = [torch.tensor(mask) for mask in bits]
    for a in tensors:
        assert mask_distance(a, a) == 0
        assert mask_distance(a, ~a) == 1
        for b in tensors:
            assert mask_distance(a, b) == mask_distance(b, a)
            assert (mask_distance(a, b) == 0) == torch.equal(a, b)
            for c in tensors:
                assert mask_distance(a, c) <= mask_distance(a, b) + mask_distance(b, c) + 1e-12
