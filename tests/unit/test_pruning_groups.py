"""Channel groups: what is coupled, and that the order is the model's own."""

import random

import torch
from diffusers import UNet2DModel
from pruning_networks import DATA, MODEL, groups_of, positions, random_unet

from region_workers.networks.dense import dense_config
from region_workers.networks.supported import network_inputs
from region_workers.pruning.groups import Member, find_groups


def sides(member: Member) -> list[tuple[str, bool, int]]:
    return [(member.layer, member.kind != "in", index) for index in positions(member).tolist()]


def test_every_channel_belongs_to_one_group_but_for_images_timesteps_and_the_networks_outputs() -> None:
    network = random_unet()
    claimed = [side for group in groups_of(network) for member in group.members for side in sides(member)]
    assert len(claimed) == len(set(claimed))
    expected = set()
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.GroupNorm):
            expected |= {(name, True, index) for index in range(layer.num_channels)}
        elif isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            outputs, inputs = layer.weight.shape[:2]
            expected |= {(name, True, index) for index in range(outputs)}
            expected |= {(name, False, index) for index in range(inputs)}
    free = {("conv_in", False), ("time_embedding.linear_1", False), ("conv_out", True)}
    assert set(claimed) == {side for side in expected if side[:2] not in free}


def test_a_concatenation_sees_the_skips_channels_behind_those_from_below() -> None:
    (group,) = [group for group in groups_of(random_unet()) if group.root == "conv_in"]
    (member,) = [m for m in group.members if m.layer == "up_blocks.2.resnets.0.conv1"]
    assert (member.kind, member.indices, member.layer_size) == ("in", slice(64, 96), 96)


def test_norm_groups_are_the_group_norms_that_see_the_channels_and_0_where_none_does() -> None:
    norm_groups = {group.root: group.norm_groups for group in groups_of(random_unet())}
    assert norm_groups["conv_in"] == 8
    assert norm_groups["time_embedding.linear_1"] == 0
    assert norm_groups["up_blocks.0.resnets.1.conv2"] == 0  # straight into the upsampler


def test_groups_are_the_same_whatever_the_inputs_device_and_the_tracers_luck() -> None:
    network = random_unet()

    def described() -> list[object]:
        groups = find_groups(network, network_inputs(network, "cpu"))
        return [(g.root, g.size, [(m.layer, m.kind, str(m.indices)) for m in g.members]) for g in groups]

    first = described()
    random.seed(99)
    with torch.no_grad():
        assert described() == first
    names = [name for name, _ in network.named_modules()]
    roots = [names.index(str(root)) for root, *_ in first]  # type: ignore[misc]
    assert roots == sorted(roots)


def test_tracing_leaves_the_network_alone() -> None:
    network = random_unet().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    groups_of(network)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_attention_of_several_heads_is_pruned_evenly_over_its_heads() -> None:
    network = random_unet(MODEL.model_copy(update={"attention_head_dim": 16}))
    (group,) = [group for group in groups_of(network) if group.root == "mid_block.attentions.0.to_q"]
    assert group.norm_groups == 64 // 16


def test_a_class_embedding_shares_the_time_embeddings_channels() -> None:
    network = UNet2DModel(**dense_config(MODEL, DATA) | {"num_class_embeds": 10})
    (group,) = [
        group for group in find_groups(network, network_inputs(network)) if group.root == "time_embedding.linear_2"
    ]
    assert [(m.kind, m.layer_size) for m in group.members if m.layer == "class_embedding"] == [("embedding", 128)]
