"""The rule that turns a ratio into a number of channels."""

from __future__ import annotations

import pytest

from region_workers.pruning.groups import ChannelGroup, Member
from region_workers.pruning.widths import check_ratio, realised_ratio, removed_channels
from schemas.errors import PlanError


def group(size: int, norm_groups: int, root: str = "conv_in") -> ChannelGroup:
    return ChannelGroup(root, size, norm_groups, (Member(root, "out", slice(0, size), size),))


@pytest.mark.parametrize(
    ("channels", "norm_groups", "ratio", "removed"),
    [
        (128, 32, 0.3, 32),  # n = 39: one of each norm group
        (128, 32, 0.5, 64),
        (128, 32, 0.6, 64),  # n = 77: as 0.5
        (256, 32, 0.8, 192),  # n = 205
        (256, 0, 0.8, 205),
        (512, 0, 0.3, 154),
        (128, 32, 0.2, 0),
        (128, 32, 0.0, 0),
    ],
)
def test_whole_norm_groups_round_the_ratio_down(channels: int, norm_groups: int, ratio: float, removed: int) -> None:
    assert removed_channels(channels, norm_groups, ratio) == removed


def test_the_noise_of_floating_point_decides_nothing() -> None:
    assert removed_channels(10, 0, 0.9) == 9  # 10 * (1 - 0.9) is 0.9999999999999998
    assert removed_channels(320, 0, 0.9) == 288
    assert removed_channels(10, 0, 0.1 + 0.2) == removed_channels(10, 0, 0.3) == 3
    for percent in range(100):
        assert removed_channels(100, 0, percent / 100) == percent


def test_the_realised_ratio_counts_channels() -> None:
    assert realised_ratio([group(128, 32), group(512, 0)], 0.3) == (32 + 154) / 640
    assert realised_ratio([group(128, 32)], 0.0) == 0.0
    assert realised_ratio([], 0.5) == 0.0


def test_a_ratio_that_removes_nothing_is_refused_with_its_field() -> None:
    with pytest.raises(PlanError, match=r"regions\.0\.pruning_ratio = 0\.2: .*lower model.norm_num_groups"):
        check_ratio([group(128, 32)], 0.2, "regions.0.pruning_ratio")
    check_ratio([group(128, 32), group(256, 32, "mid_block.conv")], 0.25, "regions.0.pruning_ratio")
    check_ratio([group(128, 32)], 0.0, "regions.0.pruning_ratio")


def test_a_ratio_that_removes_channels_from_the_time_embedding_alone_is_refused() -> None:
    groups = [group(128, 32), group(512, 0, "time_embedding.linear_1")]
    with pytest.raises(PlanError, match=r"about 0\.25 or more"):
        check_ratio(groups, 0.2, "regions.0.pruning_ratio")
    check_ratio(groups, 0.25, "regions.0.pruning_ratio")


def test_a_ratio_that_empties_a_layer_is_refused_with_the_layers_name() -> None:
    with pytest.raises(PlanError, match=r"removes all 8 of mid_block\.conv"):
        check_ratio([group(128, 32), group(8, 8, "mid_block.conv")], 0.9, "regions.2.pruning_ratio")


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_outside_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(PlanError, match="0 <= ratio < 1"):
        check_ratio([group(128, 32)], ratio, "regions.0.pruning_ratio")
