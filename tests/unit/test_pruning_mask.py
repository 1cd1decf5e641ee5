"""Masks: how many channels a ratio removes, which bits are dropped, how far apart two are, and what they keep."""

import pytest
import torch
from pruning_networks import groups_of, magnitude_mask, magnitude_ticket, random_unet

from region_workers.pruning.groups import ChannelGroup, Member
from region_workers.pruning.importance import channel_scores
from region_workers.pruning.mask import (
    check_ratio,
    compute_mask,
    kept_channels,
    mask_distance,
    prunable_bits,
    realised_ratio,
    removed_channels,
)
from schemas.errors import PlanError
from schemas.job import KeptChannels


def group(root: str, size: int, norm_groups: int, *members: Member) -> ChannelGroup:
    return ChannelGroup(root, size, norm_groups, (Member(root, "out", slice(0, size), size), *members))


def bits(mask: torch.Tensor) -> str:
    return "".join("1" if bit else "0" for bit in mask.tolist())


def test_the_lowest_scores_go_where_there_is_no_norm() -> None:
    assert bits(compute_mask([group("a", 5, 0)], [torch.tensor([5.0, 1, 4, 2, 3])], 0.4)) == "10101"


def test_each_norm_group_gives_up_the_same_number_of_channels() -> None:
    scores = torch.tensor([1.0, 2, 3, 4, 50, 60, 70, 80])  # by score alone the first half would go
    assert bits(compute_mask([group("a", 8, 2)], [scores], 0.5)) == "00110011"


def test_of_equal_scores_the_first_channels_stay() -> None:
    assert bits(compute_mask([group("a", 8, 2)], [torch.zeros(8)], 0.5)) == "11001100"
    assert bits(compute_mask([group("a", 300, 0)], [torch.zeros(300)], 0.5)) == "1" * 150 + "0" * 150


def test_a_ratio_of_0_keeps_every_channel_of_every_layer() -> None:
    groups = groups_of(random_unet())
    mask = compute_mask(groups, [torch.rand(g.size) for g in groups], 0.0)
    assert mask.dtype == torch.bool
    assert mask.shape == (prunable_bits(groups),) == (sum(g.size for g in groups),)
    assert mask.all()
    assert kept_channels(groups, mask) == {}


def test_the_distance_is_the_share_of_bits_that_differ() -> None:
    a = torch.tensor([True, True, False, False])
    assert mask_distance(a, a) == 0.0
    assert mask_distance(a, ~a) == 1.0
    assert mask_distance(a, torch.tensor([True, False, False, False])) == 0.25
    tenth = torch.arange(10) == 0
    assert mask_distance(tenth, torch.zeros(10, dtype=torch.bool)) <= 0.1  # float32 would put it above
    with pytest.raises(AssertionError, match="bits"):
        mask_distance(a, a[:3])


def test_a_layer_behind_a_concatenation_keeps_the_channels_of_both_groups() -> None:
    below = group("below", 2, 0, Member("joined", "in", slice(0, 2), 5), Member("norm", "norm", slice(0, 2), 5))
    skip = group("skip", 3, 0, Member("joined", "in", slice(2, 5), 5), Member("norm", "norm", slice(2, 5), 5))
    mask = torch.tensor([False, True, True, False, True])
    assert kept_channels([below, skip], mask) == {
        "below": KeptChannels(outputs=(1,)),
        "joined": KeptChannels(inputs=(1, 2, 4)),
        "norm": KeptChannels(outputs=(1, 2, 4)),
        "skip": KeptChannels(outputs=(0, 2)),
    }


def test_channels_that_a_layer_sees_in_another_order_are_found_there() -> None:
    turned = group("a", 3, 0, Member("b", "in", torch.tensor([2, 0, 1]), 3))
    assert kept_channels([turned], torch.tensor([True, False, False]))["b"] == KeptChannels(inputs=(2,))


def test_a_side_that_keeps_everything_is_left_out() -> None:
    a, b = group("a", 2, 0, Member("b", "in", slice(0, 2), 2)), group("b", 2, 0)
    kept = kept_channels([a, b], torch.tensor([True, True, False, True]))
    assert kept == {"b": KeptChannels(outputs=(1,))}


def test_the_kept_channels_are_as_many_as_the_rule_says() -> None:
    kept = magnitude_ticket(random_unet())
    assert len(kept["conv_in"].outputs or ()) == 16  # 32 - 8 * floor(20 / 8)
    assert kept["conv_in"].inputs is None
    assert len(kept["time_embedding.linear_1"].outputs or ()) == 51
    assert len(kept["up_blocks.2.resnets.0.conv1"].inputs or ()) == 32 + 16  # of 64 and 32
    assert "conv_out" in kept
    assert kept["conv_out"].outputs is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_mask_on_a_gpu_never_waits_for_the_host_and_equals_the_cpus() -> None:
    network = random_unet()
    groups, expected = groups_of(network), magnitude_mask(network)
    parameters = dict(network.cuda().named_parameters())
    torch.cuda.set_sync_debug_mode("error")
    try:
        mask = compute_mask(groups, channel_scores(groups, parameters, "magnitude"), 0.6)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(mask.cpu(), expected)


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
    assert realised_ratio([group("conv_in", 128, 32), group("conv_in", 512, 0)], 0.3) == (32 + 154) / 640
    assert realised_ratio([group("conv_in", 128, 32)], 0.0) == 0.0
    assert realised_ratio([], 0.5) == 0.0


def test_a_ratio_that_removes_nothing_is_refused_with_its_field() -> None:
    with pytest.raises(PlanError, match=r"regions\.0\.pruning_ratio = 0\.2: .*lower model.norm_num_groups"):
        check_ratio([group("conv_in", 128, 32)], 0.2, "regions.0.pruning_ratio")
    check_ratio([group("conv_in", 128, 32), group("mid_block.conv", 256, 32)], 0.25, "regions.0.pruning_ratio")
    check_ratio([group("conv_in", 128, 32)], 0.0, "regions.0.pruning_ratio")


def test_a_ratio_that_removes_channels_from_the_time_embedding_alone_is_refused() -> None:
    groups = [group("conv_in", 128, 32), group("time_embedding.linear_1", 512, 0)]
    with pytest.raises(PlanError, match=r"about 0\.25 or more"):
        check_ratio(groups, 0.2, "regions.0.pruning_ratio")
    check_ratio(groups, 0.25, "regions.0.pruning_ratio")


def test_a_ratio_that_empties_a_layer_is_refused_with_the_layers_name() -> None:
    with pytest.raises(PlanError, match=r"removes all 8 of mid_block\.conv"):
        check_ratio([group("conv_in", 128, 32), group("mid_block.conv", 8, 8)], 0.9, "regions.2.pruning_ratio")


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_outside_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(PlanError, match="0 <= ratio < 1"):
        check_ratio([group("conv_in", 128, 32)], ratio, "regions.0.pruning_ratio")
