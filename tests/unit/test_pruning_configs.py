"""Ordinary diffusers networks of many kinds: the right channels go, and what cannot be pruned is refused clearly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from pruning_networks import randomise, silence_half, undo_the_scale_of_half_the_width
from safetensors.torch import load_file, save_file

from region_workers.networks.dense import network_class
from region_workers.networks.pruned_unet import PrunedUNet2DConditionModel, PrunedUNet2DModel, extract_expert
from region_workers.networks.supported import check_prunable, check_text_free, network_inputs
from region_workers.pruning.groups import find_groups
from region_workers.pruning.mask import kept_channels
from schemas.errors import UserError

PIXELS: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}
NO_ATTENTION: dict[str, Any] = {
    **PIXELS,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
}
CROSS: dict[str, Any] = {
    **PIXELS,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 1,
}
RESNET_SAMPLERS = {
    "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
}
GOOGLE_DDPM = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "layers_per_block": 2,
}
NETWORKS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "google/ddpm": (UNet2DModel, PIXELS | GOOGLE_DDPM),
    "heads": (UNet2DModel, PIXELS | {"attention_head_dim": 8}),
    "three levels": (
        UNet2DModel,
        PIXELS
        | {
            "block_out_channels": (32, 64, 64),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        },
    ),
    "resnet blocks that sample": (UNet2DModel, PIXELS | RESNET_SAMPLERS),
    "resnet sampling": (UNet2DModel, PIXELS | {"downsample_type": "resnet", "upsample_type": "resnet"}),
    "scale and shift": (UNet2DModel, PIXELS | {"resnet_time_scale_shift": "scale_shift"}),
    "classes": (UNet2DModel, PIXELS | {"num_class_embeds": 11}),
    "learned timesteps": (UNet2DModel, PIXELS | {"time_embedding_type": "learned", "num_train_timesteps": 100}),
    "no middle": (UNet2DModel, PIXELS | {"mid_block_type": None}),
    "other attention norm": (UNet2DModel, PIXELS | {"attn_norm_num_groups": 16}),
    "conditional, no attention": (UNet2DConditionModel, NO_ATTENTION),
    "conditional, classes": (UNet2DConditionModel, NO_ATTENTION | {"num_class_embeds": 11}),
    "conditional, one head a level": (
        UNet2DConditionModel,
        PIXELS | {"mid_block_type": "UNetMidBlock2D", "attention_head_dim": (None, None)},
    ),
    "conditional, resnet blocks that sample": (
        UNet2DConditionModel,
        NO_ATTENTION | RESNET_SAMPLERS | {"resnet_time_scale_shift": "scale_shift", "resnet_skip_time_act": True},
    ),
    "class context": (PrunedUNet2DConditionModel, CROSS | {"num_context_classes": 11}),
    "class context, heads": (PrunedUNet2DConditionModel, CROSS | {"num_context_classes": 11, "attention_head_dim": 4}),
    "class context, linear projections": (
        PrunedUNet2DConditionModel,
        CROSS | {"num_context_classes": 11, "use_linear_projection": True, "transformer_layers_per_block": 2},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_that_say_nothing_can_go_from_every_kind_of_network(name: str) -> None:
    kind, config = NETWORKS[name]
    torch.manual_seed(0)
    dense = randomise(kind(**config)).double().eval()
    check_prunable(dense.config)
    groups = find_groups(dense, network_inputs(dense))
    kept = kept_channels(groups, silence_half(dense, groups))
    expert = extract_expert(dense, kept)
    assert isinstance(expert, PrunedUNet2DModel if kind is UNet2DModel else PrunedUNet2DConditionModel)
    undo_the_scale_of_half_the_width(expert)
    assert expert.conv_in.out_channels == dense.conv_in.out_channels // 2
    inputs = {**network_inputs(dense, "cpu"), "sample": torch.randn(1, 3, 8, 8, dtype=torch.float64)}
    with torch.no_grad():
        torch.testing.assert_close(expert(**inputs).sample, dense(**inputs).sample)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PIXELS | {"time_embedding_type": "fourier"}, r"time_embedding_type = fourier: expected positional or learned"),
        (PIXELS | {"out_channels": 6}, r"out_channels = 6: expected in_channels = 3"),
        (PIXELS | {"class_embed_type": "timestep"}, r"class_embed_type = timestep: expected none"),
        (
            PIXELS | {"down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D")},
            "down_block_types = SkipDownBlock2D",
        ),
        (PIXELS | {"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift = spatial"),
        (NO_ATTENTION | {"class_embeddings_concat": True}, "class_embeddings_concat = True: expected False"),
        (CROSS, "CrossAttnDownBlock2D: expected blocks that do not attend to a text"),
    ],
)
def test_what_cannot_be_pruned_is_refused_by_its_field(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_prunable(config)


@pytest.mark.parametrize(
    "config",
    [
        CROSS,
        NO_ATTENTION | {"mid_block_type": "UNetMidBlock2DCrossAttn"},
        NO_ATTENTION | {"encoder_hid_dim": 768},
        NO_ATTENTION | {"addition_embed_type": "text"},
    ],
)
def test_text_conditioned_networks_are_refused_clearly(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="text-conditioned ones are not supported"):
        check_text_free(config)
    check_text_free(config | {"num_context_classes": 11, "encoder_hid_dim": None, "addition_embed_type": None})


def test_a_text_conditioned_network_is_refused_before_anything_is_extracted() -> None:
    with pytest.raises(UserError, match="text-conditioned"):
        extract_expert(UNet2DConditionModel(**CROSS), {})


def test_a_grouped_convolution_is_refused_by_its_name() -> None:
    network = UNet2DModel(**PIXELS)
    network.down_blocks[0].resnets[0].conv1 = torch.nn.Conv2d(32, 32, 3, padding=1, groups=4)
    with pytest.raises(ValueError, match=r"down_blocks\.0\.resnets\.0\.conv1 = Conv2d.*expected Conv2d \(one group\)"):
        find_groups(network, network_inputs(network))


@pytest.mark.parametrize("name", ["google/ddpm", "classes", "conditional, classes", "class context"])
def test_an_ordinary_folder_loads_as_a_dense_network_of_ours(name: str, tmp_path: Path) -> None:
    kind, config = NETWORKS[name]
    torch.manual_seed(0)
    saved = kind(**config).eval()
    saved.save_pretrained(tmp_path)
    loaded = network_class(kind.__name__).from_pretrained(tmp_path, dropout=0.1, use_safetensors=True)
    assert loaded.config.kept_channels is None
    inputs = network_inputs(loaded, "cpu")
    assert "encoder_hidden_states" not in inputs
    with torch.no_grad():
        predicted = loaded(**inputs).sample
        assert torch.equal(predicted, saved(**network_inputs(saved, "cpu")).sample)
        assert torch.equal(predicted, extract_expert(loaded, {})(**inputs).sample)


def test_the_attention_names_of_old_checkpoints_load(tmp_path: Path) -> None:
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    saved = UNet2DModel(**PIXELS)
    saved.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for new, old in old_names.items():
        weights = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in weights.items()}
    save_file(weights, file, {"format": "pt"})
    loaded = network_class("UNet2DModel").from_pretrained(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in saved.state_dict().items())


def test_a_network_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"_class_name = UNet3DConditionModel: expected UNet2DModel or"):
        network_class("UNet3DConditionModel")
