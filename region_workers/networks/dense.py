"""The dense network of a plan, a UNet of diffusers or one of ours; networks loaded from their folders."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from region_workers.networks.drawing_gru import DrawingGRU
from region_workers.networks.packed_weights import unpack
from region_workers.networks.pruned_network import NoFreshWeights
from region_workers.networks.pruned_unet import PrunedUNet2DConditionModel, PrunedUNet2DModel
from region_workers.storage.integrity import read_verified, sealed_files
from schemas.errors import RunFailed, plan_error, user_error
from schemas.job import CONFIG_FILE, WEIGHTS_FILE
from schemas.model import LatentModelPlan, ModelPlan, VectorModelPlan
from schemas.plan import DataPlan

_NETWORKS: dict[str, type[Any]] = {
    "UNet2DModel": PrunedUNet2DModel,
    "UNet2DConditionModel": PrunedUNet2DConditionModel,
    "PrunedUNet2DModel": PrunedUNet2DModel,
    "PrunedUNet2DConditionModel": PrunedUNet2DConditionModel,
    "DrawingGRU": DrawingGRU,
}


def network_class(name: str) -> type[Any]:
    """The class that loads a network folder by the `_class_name` of its config.json. UserError for another kind.

    It is one of ours also for diffusers' own: they load strictly, and need no `encoder_hidden_states`.
    """
    if name in _NETWORKS:
        return _NETWORKS[name]
    raise user_error("_class_name", name, " or ".join(_NETWORKS), "Start from a network of one of these kinds.")


def load_verified(folder: Path, sha256: Mapping[str, str] | None = None) -> nn.Module:
    """The network in a model folder, of the class that its config.json names; weights strictly, from safetensors.

    It is read from the very bytes that have these digests, by file name; default: those of the folder's seal.
    DamagedFileError if they have not; RunFailed if they are of no such network.
    """
    sha256 = sealed_files(folder) if sha256 is None else sha256
    data = read_verified(folder / CONFIG_FILE, sha256.get(CONFIG_FILE))
    weights = read_verified(folder / WEIGHTS_FILE, sha256.get(WEIGHTS_FILE))
    try:
        config = json.loads(data)
        with NoFreshWeights():
            network: nn.Module = network_class(str(config.get("_class_name"))).from_config(config)
        network.load_state_dict(unpack(load(weights), network), strict=True)
    except (ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise RunFailed(
            f"{folder}: expected {CONFIG_FILE} and the safetensors weights of its network; they do not read "
            f"({reason}). Restore the folder, or delete its stage's folder and resume."
        ) from None
    return network.eval()


def dense_config(model: ModelPlan, data: DataPlan) -> dict[str, Any]:
    """The arguments of the network that the plan's sections `model` and `data` stand for.

    They are UNet2DModel's for pixels, PrunedUNet2DConditionModel's for latents unless the plan says otherwise, and
    DrawingGRU's for drawings, but for its frequencies. A class-conditional network has one class more than the data:
    the last one stands for `no class`. Raises PlanError for blocks that do not go together.
    """
    if isinstance(model, VectorModelPlan):
        assert data.drawings is not None
        sizes = {"hidden_size": model.hidden_size, "num_layers": model.num_layers}
        of_the_training = {"num_train_timesteps": 1000, "length_counts": None}  # the family knows them
        return {**sizes, "coordinates": data.drawings.coordinates, **of_the_training}
    classes = None if model.num_classes is None else model.num_classes + 1
    channels, side = _channels_and_side(model, data)
    arguments = inspect.signature(_unet_class(model).__init__).parameters
    config = {name: value for name, value in model if name in arguments}
    config |= {"sample_size": side, "in_channels": channels, "out_channels": channels}
    if isinstance(model, LatentModelPlan) and model.network is None:
        return {**config, **_attention_config(model, classes)}
    return {**config, "num_class_embeds": classes}


def build_dense(model: ModelPlan, data: DataPlan) -> UNet2DModel | PrunedUNet2DConditionModel | DrawingGRU:
    """The dense network with fresh weights, on torch's default device (under `torch.device("meta")`: without weights).

    Drawings: a DrawingGRU. Pixels, and latents if the plan says so: a UNet2DModel. Else a PrunedUNet2DConditionModel
    with nothing pruned, whose CrossAttn blocks attend to the class; without such blocks classes are added to the time
    embedding. PlanError as for `dense_config`.
    """
    config = dense_config(model, data)
    if isinstance(model, VectorModelPlan):
        frequencies = torch.randn(model.time_embed_dim // 2, device="cpu").tolist()
        return DrawingGRU(frequencies=frequencies, **config)
    network: UNet2DModel | PrunedUNet2DConditionModel = _unet_class(model)(**config)
    return network


def loading_arguments(model: ModelPlan, data: DataPlan) -> dict[str, Any]:
    """What the plan, and not its own config, says of a network that is loaded."""
    if isinstance(model, VectorModelPlan):
        return {}
    return {"dropout": model.dropout, "sample_size": _channels_and_side(model, data)[1]}


def _unet_class(model: ModelPlan) -> type[Any]:
    has_context = isinstance(model, LatentModelPlan) and model.network is None
    kind: type[Any] = PrunedUNet2DConditionModel if has_context else UNet2DModel
    return kind


def _channels_and_side(model: ModelPlan, data: DataPlan) -> tuple[int, int]:
    """Of what is denoised, which is square: pixels, or latents."""
    if isinstance(model, LatentModelPlan):
        return model.latent_channels, data.resolution // model.latent_downscale
    return data.channels, data.resolution


def _attention_config(model: LatentModelPlan, classes: int | None) -> dict[str, Any]:
    """How the network attends, and how it learns the class."""
    types = (*model.down_block_types, *model.up_block_types)
    attends = any("CrossAttn" in name for name in types)
    alone = [name for name in types if name.startswith("Attn")]
    heads = model.attention_head_dim or 1
    if attends and not alone:
        return {"num_context_classes": classes, "attention_head_dim": heads}
    if alone and (attends or heads > 1):
        raise plan_error(
            "model.down_block_types",
            alone[0],
            "CrossAttn blocks where there are such or where there are several heads",
            "Replace Attn blocks by CrossAttn blocks, or leave CrossAttn out and set model.attention_head_dim to 1.",
        )
    # diffusers' name is true of Attn blocks: None is one head as wide as its level.
    widths = (None,) * len(model.block_out_channels)
    return {"num_class_embeds": classes, "attention_head_dim": widths, "mid_block_type": "UNetMidBlock2D"}
