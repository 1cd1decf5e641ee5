"""Experts: the network that torch-pruning would give, saved and loaded without it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning
from diffusers import UNet2DModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from pruning_networks import (
    DATA,
    FAMILIES,
    MODEL,
    check_loads_without_torch_pruning,
    groups_of,
    magnitude_mask,
    magnitude_ticket,
    noisy_images,
    random_unet,
    randomise,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from region_workers.networks.dense import dense_config
from region_workers.networks.pruned_unet import PrunedUNet2DModel, extract_expert
from region_workers.networks.supported import network_inputs
from region_workers.pruning.slim import slim
from region_workers.storage.integrity import DamagedFileError, seal_folder
from schemas.job import KeptChannels


def pruned_by_torch_pruning(network: UNet2DModel, mask: torch.Tensor) -> UNet2DModel:
    groups, network = groups_of(network), copy.deepcopy(network)
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=network_inputs(network, "cpu"))
    for group, bits in zip(groups, mask.split([group.size for group in groups]), strict=True):
        root = network.get_submodule(group.root)
        prune = graph.get_pruner_of_module(root).prune_out_channels
        if removed := (~bits).nonzero().flatten().tolist():
            graph.get_pruning_group(root, prune, removed).prune()
    for module in network.modules():  # torch-pruning does not know of these
        if isinstance(module, Downsample2D | Upsample2D):
            module.channels = module.conv.in_channels
    return network


@pytest.mark.parametrize("head_dim", [None, 16])
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.8])
def test_an_expert_computes_what_torch_prunings_network_does(ratio: float, head_dim: int | None) -> None:
    dense = random_unet(MODEL.model_copy(update={"attention_head_dim": head_dim}))
    expected = pruned_by_torch_pruning(dense, magnitude_mask(dense, ratio))
    expert = extract_expert(dense, magnitude_ticket(dense, ratio))
    shapes = {name: tensor.shape for name, tensor in expected.state_dict().items()}
    assert {name: tensor.shape for name, tensor in expert.state_dict().items()} == shapes
    with torch.no_grad():
        torch.testing.assert_close(expert(noisy_images(), 5).sample, expected(noisy_images(), 5).sample)


def test_extraction_leaves_the_dense_network_alone_and_shares_no_memory_with_it() -> None:
    dense = random_unet().train()
    before = copy.deepcopy(dense.state_dict())
    expert = extract_expert(dense, magnitude_ticket(dense))
    assert expert.training
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in expert.parameters())
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


def test_a_dense_expert_is_the_dense_network() -> None:
    dense = random_unet()
    expert = extract_expert(dense, {})
    assert expert.config.kept_channels is None
    with torch.no_grad():
        assert torch.equal(expert(noisy_images(), 5).sample, dense(noisy_images(), 5).sample)


@pytest.mark.parametrize(("make", "inputs"), FAMILIES.values(), ids=FAMILIES)
def test_every_weight_of_an_expert_receives_a_gradient(make: Callable[[], Any], inputs: dict[str, Tensor]) -> None:
    dense = make()
    expert = extract_expert(dense, magnitude_ticket(dense)).train()
    expert(timestep=5, **inputs).sample.square().sum().backward()
    assert all(parameter.grad is not None for parameter in expert.parameters())


def test_a_class_conditional_network_can_be_extracted() -> None:
    torch.manual_seed(0)
    dense = randomise(UNet2DModel(**dense_config(MODEL, DATA) | {"num_class_embeds": 10}))
    expert = extract_expert(dense, magnitude_ticket(dense))
    assert expert.class_embedding.weight.shape == (10, 51)
    assert expert.class_embedding.embedding_dim == 51


@pytest.mark.parametrize(("make", "inputs"), FAMILIES.values(), ids=FAMILIES)
def test_a_saved_expert_loads_bit_for_bit_where_torch_pruning_is_not_installed(
    make: Callable[[], Any], inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    dense = make()
    check_loads_without_torch_pruning(extract_expert(dense, magnitude_ticket(dense)), tmp_path, **inputs)
    assert {path.name for path in (tmp_path / "expert").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }


def test_loading_refuses_weights_that_do_not_fit(tmp_path: Path) -> None:
    dense = random_unet()
    extract_expert(dense, magnitude_ticket(dense)).save_pretrained(tmp_path)
    weights_path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(weights_path)
    bias = weights.pop("conv_out.bias")
    save_file(weights, weights_path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"conv_out\.bias"):
        PrunedUNet2DModel.from_pretrained(tmp_path)
    save_file({**weights, "conv_out.bias": bias, "conv_exit.bias": bias.clone()}, weights_path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"conv_exit\.bias"):
        PrunedUNet2DModel.from_pretrained(tmp_path)
    seal_folder(tmp_path)
    save_file({**weights, "conv_out.bias": bias}, weights_path, {"format": "pt"})
    with pytest.raises(DamagedFileError):
        PrunedUNet2DModel.from_pretrained(pretrained_model_name_or_path=tmp_path)


def test_the_config_is_json_and_builds_a_network_of_the_same_shape_with_fresh_finite_weights(tmp_path: Path) -> None:
    dense = random_unet()
    expert = extract_expert(dense, magnitude_ticket(dense))
    config = json.loads(json.dumps({k: v for k, v in expert.config.items() if not k.startswith("_")}))
    fresh = [PrunedUNet2DModel(**config) for _ in range(2) if torch.manual_seed(3)]
    other = PrunedUNet2DModel(**config)
    for name, tensor in expert.state_dict().items():
        own = fresh[0].state_dict()[name]
        assert own.shape == tensor.shape
        assert own.isfinite().all()
        assert torch.equal(own, fresh[1].state_dict()[name])
    assert not torch.equal(fresh[0].conv_in.weight, other.conv_in.weight)
    fan_in = fresh[0].conv_in.weight[0].numel()
    assert 0.5 * fan_in**-0.5 < fresh[0].conv_in.weight.abs().max() <= fan_in**-0.5


def test_slimming_makes_every_remembered_size_true() -> None:
    network = random_unet()
    slim(network, magnitude_ticket(network, 0.6))
    assert (network.conv_in.in_channels, network.conv_in.out_channels) == (3, 16)
    assert (network.time_embedding.linear_2.in_features, network.time_embedding.linear_2.out_features) == (51, 51)
    assert network.conv_norm_out.num_channels == 16
    down, up = network.down_blocks[0].downsamplers[0], network.up_blocks[0].upsamplers[0]
    assert (down.channels, down.out_channels) == (16, down.conv.out_channels)
    assert (up.channels, up.out_channels) == (up.conv.in_channels, 32)
    attention = network.mid_block.attentions[0]
    assert (attention.query_dim, attention.inner_dim, attention.out_dim) == (32, 25, 32)
    assert attention.scale == 25**-0.5
    seen: list[tuple[int, int]] = []
    blocks = [module for module in network.modules() if isinstance(module, ResnetBlock2D)]
    for block in blocks:
        block.register_forward_hook(lambda _, images, result: seen.append((images[0].shape[1], result.shape[1])))
    network(noisy_images(), 5)
    assert sorted(seen) == sorted((block.in_channels, block.out_channels) for block in blocks)


@pytest.mark.parametrize(
    ("layer", "kept", "message"),
    [
        ("conv_in", KeptChannels(outputs=(0, 32)), r"conv_in\.outputs"),
        ("conv_in", KeptChannels(outputs=()), r"conv_in\.outputs"),
        ("conv_in", KeptChannels(inputs=(1, 0)), r"conv_in\.inputs"),
        ("conv_exit", KeptChannels(outputs=(0,)), "conv_exit"),
        ("conv_act", KeptChannels(outputs=(0,)), "conv_act"),
        ("conv_norm_out", KeptChannels(outputs=tuple(range(12))), "8 norm groups"),
    ],
)
def test_kept_channels_that_do_not_fit_are_refused_by_layer(layer: str, kept: KeptChannels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slim(random_unet(), {layer: kept})
