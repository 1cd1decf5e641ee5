"""Sparse weights in a file: packed with their masks, and the same bits again by every way of loading them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from ensemble_fixtures import NAMES, ROUTES
from pruning_networks import random_latent_unet, random_unet
from safetensors.torch import load_file
from torch import Tensor, nn

from ebdiff_orchestrator.ensemble import ensemble_of, load_ensemble
from region_workers.networks.dense import load_verified
from region_workers.networks.packed_weights import masks_of, stored_bytes, unpack, write_weights
from region_workers.networks.pretrained import find_dense
from region_workers.networks.pruned_unet import PrunedUNet2DModel, extract_expert
from region_workers.pruning.weight_masks import kept_counts, maskable_shapes, random_mask
from region_workers.storage.integrity import file_digests
from schemas.job import WEIGHTS_FILE
from schemas.plan import DiffusionPlan, SamplingPlan

_BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_BITS[tensor.dtype])


def _masked(network: nn.Module, sparsity: float = 0.6) -> dict[str, Tensor]:
    """Masks of a network, whose weights are made zero behind them; two of the kept ones too."""
    counts, weights = kept_counts(maskable_shapes(network), sparsity, "erk"), dict(network.named_parameters())
    generator = torch.Generator().manual_seed(0)
    masks = {
        name: random_mask(weights[name].shape, count, generator)
        for name, count in counts.items()
        if count < weights[name].numel()
    }
    for name, mask in masks.items():
        kept = weights[name].detach()[mask]
        kept[:2] = torch.tensor([0.0, -0.0])
        weights[name].data = torch.zeros_like(weights[name]).masked_scatter(mask, kept)
    return masks


def _saved(network: Any, folder: Path) -> dict[str, Tensor]:
    """The masks with which the network, an expert of ours, is saved in the folder, packed."""
    masks = _masked(network)
    network.save_config(folder)
    write_weights(folder / WEIGHTS_FILE, network.state_dict(), masks)
    return masks


@pytest.fixture(scope="module")
def expert() -> PrunedUNet2DModel:
    """The expert of an unpruned network."""
    return extract_expert(random_unet(), {})


@pytest.fixture(scope="module")
def folder(expert: PrunedUNet2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `expert` is saved."""
    folder = tmp_path_factory.mktemp("expert")
    _saved(expert, folder)
    return folder


@pytest.mark.parametrize("dtype", list(_BITS))
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_kept_values_come_back_bit_by_bit_in_their_places(
    dtype: torch.dtype, memory_format: torch.memory_format, tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Conv2d(5, 7, 3), nn.Linear(11, 3, bias=False)).to(dtype, memory_format=memory_format)
    masks = {
        name: torch.empty_like(weight, dtype=torch.bool).copy_(torch.rand(weight.shape) < 0.3)
        for name, weight in network.named_parameters()
        if weight.ndim > 1
    }
    for name, mask in masks.items():
        weight = network.get_parameter(name).detach().mul_(mask)
        kept = weight[mask]
        _bits(kept)[:4] = torch.tensor([0, -(2 ** (8 * kept.element_size() - 1)), 0x7FC1, -1]).to(_BITS[dtype])
        weight[mask] = kept  # 0.0, -0.0, and no numbers
    write_weights(tmp_path / "file", network.state_dict(), masks)
    stored = load_file(tmp_path / "file")
    assert stored["0.weight"].shape == (int(masks["0.weight"].sum()),)
    found = unpack(stored, network)
    for name, weight in network.state_dict().items():
        expected = weight.masked_fill(~masks[name], 0.0) if name in masks else weight  # without the signs of zeros
        assert torch.equal(_bits(found[name]), _bits(expected))
    assert masks_of(network).keys() == masks.keys()
    assert all(torch.equal(mask, masks[name]) for name, mask in masks_of(network).items())


def test_what_would_not_be_smaller_or_not_the_same_is_stored_whole(tmp_path: Path) -> None:
    weights = {name: torch.ones(8, 4) for name in ("dense", "nearly dense", "sparse", "trained on")}
    masks = {name: torch.arange(32).view(8, 4) < kept for name, kept in (("nearly dense", 31), ("sparse", 30))}
    for name, mask in masks.items():
        weights[name] *= mask
    masks["trained on"] = masks["sparse"]
    write_weights(tmp_path / "file", weights, masks)
    stored = load_file(tmp_path / "file")
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        **dict.fromkeys(("dense", "nearly dense", "trained on"), (8, 4)),
        "sparse": (30,),
        "sparse.mask": (4,),
    }
    assert [stored_bytes(32, kept) for kept in (32, 31, 30)] == [128, 128, 124]


def _pretrained(folder: Path, **options: Any) -> PrunedUNet2DModel:
    network: PrunedUNet2DModel = PrunedUNet2DModel.from_pretrained(folder, **options)
    return network


@pytest.mark.parametrize(
    "load",
    [
        _pretrained,
        lambda folder: _pretrained(folder.parent, subfolder=folder.name),
        lambda folder: _pretrained(folder, low_cpu_mem_usage=True),
        lambda folder: load_verified(folder, file_digests(folder)),
        lambda folder: find_dense(str(folder)).load(dropout=0.1, side=8),
    ],
    ids=["from_pretrained", "subfolder", "on meta first", "load_verified", "model.pretrained"],
)
def test_every_way_of_loading_a_packed_expert_gives_the_same_bits(
    load: Callable[[Path], nn.Module], expert: PrunedUNet2DModel, folder: Path
) -> None:
    assert any(name.endswith(".mask") for name in load_file(folder / WEIGHTS_FILE))
    found = load(folder).state_dict()
    assert found.keys() == expert.state_dict().keys()
    assert all(torch.equal(_bits(found[name]), _bits(value)) for name, value in expert.state_dict().items())


def test_a_packed_expert_is_loaded_in_another_precision(expert: PrunedUNet2DModel, folder: Path) -> None:
    found = _pretrained(folder, torch_dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(found[name], value.bfloat16()) for name, value in expert.state_dict().items())


def test_diffusers_own_class_refuses_a_packed_expert_and_reads_what_is_saved_whole(
    expert: PrunedUNet2DModel, folder: Path, tmp_path: Path
) -> None:
    for options in ({}, {"low_cpu_mem_usage": False}):
        with pytest.raises((ValueError, RuntimeError), match=r"shape|size mismatch"):
            UNet2DModel.from_pretrained(folder, **options)
    _pretrained(folder).save_pretrained(tmp_path)
    whole = UNet2DModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(_bits(whole[name]), _bits(value)) for name, value in expert.state_dict().items())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("make", [random_unet, random_latent_unet], ids=["pixels", "classes"])
def test_an_ensemble_keeps_its_experts_packed_and_draws_the_same_bits_offloaded_and_saved_again(
    make: Callable[..., nn.Module], dtype: torch.dtype | None, tmp_path: Path
) -> None:
    experts = []
    for seed, name in enumerate(NAMES):
        _saved(extract_expert(make(seed=seed), {}), tmp_path / name)
        experts.append(load_verified(tmp_path / name, file_digests(tmp_path / name)))
    ensemble_of(experts, ROUTES, NAMES, DiffusionPlan(), SamplingPlan(steps=3)).save_pretrained(tmp_path / "saved")
    for name in NAMES:
        saved = tmp_path / "saved/unet" / name / WEIGHTS_FILE
        assert saved.read_bytes() == (tmp_path / name / WEIGHTS_FILE).read_bytes()
    loaded = load_ensemble(tmp_path / "saved", torch_dtype=dtype)
    loaded.save_pretrained(tmp_path / "again")
    offloaded = load_ensemble(tmp_path / "again", torch_dtype=dtype, offload=True)
    assert np.array_equal(_drawn(loaded), _drawn(offloaded))
    sizes = [
        sum(path.stat().st_size for path in tmp_path.glob(f"{at}/unet/*/{WEIGHTS_FILE}")) for at in ("again", "saved")
    ]
    assert sizes[0] < 0.6 * sizes[1] if dtype else sizes[0] == sizes[1]


def _drawn(pipeline: Any) -> Any:
    labels = None if pipeline.unet.num_classes is None else [1]
    generator = torch.Generator().manual_seed(0)
    return pipeline(1, generator, class_labels=labels, output_type="np", show_progress=False).images


def test_an_expert_that_was_trained_on_without_its_mask_is_saved_whole(folder: Path, tmp_path: Path) -> None:
    expert = _pretrained(folder)
    with torch.no_grad():
        expert.conv_in.weight.add_(1.0)
    ensemble_of([expert], [(0, 1000)], ["all"], DiffusionPlan(), SamplingPlan()).save_pretrained(tmp_path / "all")
    stored = load_file(tmp_path / "all/unet/all" / WEIGHTS_FILE)
    assert torch.equal(stored["conv_in.weight"], expert.conv_in.weight)
    assert "mid_block.resnets.0.conv1.weight.mask" in stored
