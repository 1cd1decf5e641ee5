"""Latent networks: the class route, and pruning through norms, transformer blocks, heads and gated feed-forwards."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from pruning_networks import (
    DATA,
    LATENT_DATA,
    LATENT_MODEL,
    MODEL,
    groups_of,
    magnitude_ticket,
    noise,
    random_latent_unet,
)
from torch import nn

from region_workers.networks.dense import build_dense, dense_config
from region_workers.networks.pruned_unet import PrunedUNet2DConditionModel, extract_expert
from region_workers.networks.supported import network_inputs
from region_workers.pruning.groups import ChannelGroup
from region_workers.pruning.importance import channel_scores
from schemas.errors import PlanError, UserError

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"


def latents() -> torch.Tensor:
    return noise(3, 3, 8, 8)


def group_of(network: nn.Module, root: str) -> ChannelGroup:
    (group,) = [group for group in groups_of(network) if group.root == root]
    return group


def test_the_plans_latents_and_classes_shape_network_and_inputs() -> None:
    network = build_dense(LATENT_MODEL, LATENT_DATA)
    assert isinstance(network, PrunedUNet2DConditionModel)
    assert network.context_embedding.weight.shape == (11, 24)  # ten classes and `no class`
    assert network.class_embedding is None
    inputs = network_inputs(network, "cpu")
    assert inputs["sample"].shape == (1, 3, 8, 8)  # 32 pixels a side, four to a latent
    assert network(**inputs).sample.shape == (1, 3, 8, 8)


def test_a_class_is_the_one_token_that_every_transformer_block_attends_to() -> None:
    network = random_latent_unet()
    labels = torch.tensor([0, 4, 10])
    with torch.no_grad():
        by_label = network(latents(), 5, class_labels=labels).sample
        context = network.context_embedding.weight[labels][:, None]
        assert torch.equal(by_label, network(latents(), 5, encoder_hidden_states=context).sample)
        others = network(latents(), 5, class_labels=torch.tensor([0, 5, 10])).sample
    assert torch.equal(others[[0, 2]], by_label[[0, 2]])
    assert not torch.allclose(others[1], by_label[1])


def test_without_a_class_the_network_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"class_labels = None: expected one class for each sample.*10 for `no class`"):
        random_latent_unet()(latents(), 5)


@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize("blocks", [("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")])
def test_without_crossattn_blocks_classes_join_the_timestep_or_are_left_out(
    classes: int | None, blocks: tuple[str, str]
) -> None:
    down, up = blocks
    changes = {"down_block_types": (down, down), "up_block_types": (up, up), "num_classes": classes}
    network = random_latent_unet(**changes)
    assert network.context_embedding is None
    assert (network.class_embedding is None) == (classes is None)
    inputs = network_inputs(network, "cpu")
    expert = extract_expert(network, magnitude_ticket(network))
    assert expert(**inputs).sample.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("classes", [None, 10])
def test_latents_take_a_plain_unet_with_several_heads_if_the_plan_says_so(classes: int | None) -> None:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    changes = {**blocks, "network": "UNet2DModel", "attention_head_dim": 8, "num_classes": classes}
    model = LATENT_MODEL.model_copy(update=changes)
    network = build_dense(model, LATENT_DATA)
    assert type(network) is UNet2DModel
    assert network.mid_block.attentions[0].heads == LATENT_MODEL.block_out_channels[-1] // 8
    inputs = network_inputs(network, "cpu")
    expert = extract_expert(network, magnitude_ticket(network, 0.5))
    assert expert(**inputs).sample.shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"down_block_types": ("AttnDownBlock2D", "CrossAttnDownBlock2D")},
        {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 4,
        },
    ],
)
def test_blocks_whose_heads_diffusers_would_mistake_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"model\.down_block_types = AttnDownBlock2D: expected CrossAttn blocks"):
        build_dense(LATENT_MODEL.model_copy(update=changes), LATENT_DATA)


def test_a_context_of_many_widths_is_refused() -> None:
    config = dense_config(LATENT_MODEL, LATENT_DATA) | {"cross_attention_dim": (24, 32)}
    with pytest.raises(UserError, match=r"cross_attention_dim = \(24, 32\): expected one number"):
        PrunedUNet2DConditionModel(**config)


def test_a_pixel_model_with_classes_takes_labels() -> None:
    model = MODEL.model_copy(update={"num_classes": 10})
    network = build_dense(model, DATA)
    inputs = network_inputs(network, "cpu")
    assert inputs["class_labels"].dtype == torch.int64
    assert network(**inputs).sample.shape == (1, 3, 8, 8)
    assert network.class_embedding.num_embeddings == 11


def test_a_transformers_channels_pass_its_norms_attentions_and_feed_forward_under_no_norm_group() -> None:
    group = group_of(random_latent_unet(), "down_blocks.1.attentions.0.proj_in")
    assert (group.size, group.norm_groups) == (64, 0)
    sides = {(member.layer.removeprefix(f"{BLOCK}."), member.kind) for member in group.members}
    assert {("norm1", "norm"), ("norm2", "norm"), ("norm3", "norm")} <= sides
    assert {("attn1.to_q", "in"), ("attn1.to_k", "in"), ("attn1.to_v", "in"), ("attn2.to_q", "in")} <= sides
    assert {("attn1.to_out.0", "out"), ("attn2.to_out.0", "out"), ("ff.net.2", "out"), ("ff.net.0.proj", "in")} <= sides
    assert ("attn2.to_k", "in") not in sides


def test_the_class_vectors_stay_whole() -> None:
    members = [member for group in groups_of(random_latent_unet()) for member in group.members]
    assert not [member for member in members if member.layer == "context_embedding"]
    assert not [m for m in members if m.kind == "in" and m.layer.endswith(("attn2.to_k", "attn2.to_v"))]


def test_both_halves_of_a_gated_projection_and_the_layer_behind_are_one_group() -> None:
    network = random_latent_unet()
    group = group_of(network, f"{BLOCK}.ff.net.0.proj")
    assert (group.size, group.norm_groups) == (256, 0)
    described = [(m.layer.removeprefix(f"{BLOCK}.ff.net."), m.kind, m.indices, m.layer_size) for m in group.members]
    assert described == [
        ("0.proj", "out", slice(0, 256), 512),
        ("0.proj", "out", slice(256, 512), 512),
        ("2", "in", slice(0, 256), 256),
    ]


def test_a_gated_channels_importance_sums_over_both_its_rows_and_the_next_layers_inputs() -> None:
    network = random_latent_unet()
    group = group_of(network, f"{BLOCK}.ff.net.0.proj")
    parameters = dict(network.named_parameters())
    (score,) = channel_scores([group], parameters, "magnitude")
    rows = parameters[f"{BLOCK}.ff.net.0.proj.weight"].detach().square().sum(1)
    inputs = parameters[f"{BLOCK}.ff.net.2.weight"].detach().square().sum(0)
    torch.testing.assert_close(score, (rows[:256] + rows[256:] + inputs) / 2)


@pytest.mark.parametrize(("ratio", "inner"), [(0.3, 179), (0.5, 128), (0.8, 51)])
def test_the_same_gated_channels_stay_in_both_halves(ratio: float, inner: int) -> None:
    kept = magnitude_ticket(random_latent_unet(), ratio)
    outputs = kept[f"{BLOCK}.ff.net.0.proj"].outputs
    following = kept[f"{BLOCK}.ff.net.2"].inputs
    assert outputs is not None
    assert following is not None
    assert len(following) == inner  # int(256 (1 - ratio))
    assert outputs == (*following, *(256 + channel for channel in following))


def test_heads_stay_equally_wide() -> None:
    network = random_latent_unet(attention_head_dim=4)
    assert group_of(network, f"{BLOCK}.attn2.to_q").norm_groups == 4
    outputs = magnitude_ticket(network, 0.6)[f"{BLOCK}.attn2.to_q"].outputs
    assert outputs is not None
    of_head = [channel // 16 for channel in outputs]
    assert [of_head.count(head) for head in range(4)] == [16 - 9] * 4  # 39 of 64 to remove: nine a head


def test_slimming_makes_every_size_that_a_transformer_remembers_true() -> None:
    network = random_latent_unet(attention_head_dim=4)
    expert = extract_expert(network, magnitude_ticket(network, 0.5))
    transformer = expert.down_blocks[1].attentions[0]
    assert isinstance(transformer, Transformer2DModel)
    assert (transformer.in_channels, transformer.inner_dim, transformer.out_channels) == (32, 32, 32)
    block = transformer.transformer_blocks[0]
    assert isinstance(block, BasicTransformerBlock)
    assert (block.dim, block.attention_head_dim, block.cross_attention_dim) == (32, 8, 24)
    assert block.norm1.normalized_shape == (32,)
    assert (block.attn2.query_dim, block.attn2.inner_dim, block.attn2.cross_attention_dim) == (32, 32, 24)
    assert (block.ff.net[0].proj.out_features, block.ff.net[2].in_features) == (256, 128)


def test_a_fresh_expert_has_finite_weights_of_the_tickets_shapes() -> None:
    network = random_latent_unet()
    expert = extract_expert(network, magnitude_ticket(network))
    config = {name: value for name, value in expert.config.items() if not name.startswith("_")}
    torch.manual_seed(3)
    fresh = PrunedUNet2DConditionModel(**config)
    shapes = {name: tensor.shape for name, tensor in expert.state_dict().items()}
    assert {name: tensor.shape for name, tensor in fresh.state_dict().items()} == shapes
    assert all(tensor.isfinite().all() for tensor in fresh.state_dict().values())
    assert 0.9 < fresh.context_embedding.weight.std() < 1.1
    norm = fresh.get_submodule(f"{BLOCK}.norm1")
    assert torch.equal(norm.weight, torch.ones_like(norm.weight))


def test_an_expert_cannot_be_pruned_again() -> None:
    network = random_latent_unet()
    expert = extract_expert(network, magnitude_ticket(network))
    with pytest.raises(ValueError, match="expected a network that is not pruned"):
        extract_expert(expert, {})


def test_a_network_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="dense = Linear: expected UNet2DModel, UNet2DConditionModel or DrawingGRU"):
        extract_expert(nn.Linear(1, 1), {})
