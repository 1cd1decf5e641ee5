"""The dense network of a plan: diffusers' UNet2DModel, and the inputs that trace it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from schemas.model import ModelPlan
from schemas.plan import DataPlan


_NOT_ARGUMENTS = {"family", "pretrained", "num_classes", "label_dropout"}


def dense_config(model: ModelPlan, data: DataPlan) -> dict[str, Any]:
    """The arguments of `UNet2DModel` that the plan's sections `model` and `data` stand for.

    A class-conditional network has one class more than the data: the last one stands for `no class`.
    """
    return {
        **model.model_dump(exclude=_NOT_ARGUMENTS),
        "sample_size": data.resolution,
        "in_channels": data.channels,
        "out_channels": data.channels,
        "num_class_embeds": None if model.num_classes is None else model.num_classes + 1,
    }


def build_dense(model: ModelPlan, data: DataPlan) -> UNet2DModel:
    """The dense UNet with fresh weights, on torch's default device (under `torch.device("meta")`: without weights)."""
    return UNet2DModel(**dense_config(model, data))


def example_inputs(data: DataPlan, device: torch.device | str = "meta") -> dict[str, Tensor]:
    """Inputs of one forward pass: `sample` (1, channels, resolution, resolution) and `timestep` (1,)."""
    return {
        "sample": torch.zeros(1, data.channels, data.resolution, data.resolution, device=device),
        "timestep": torch.ones(1, dtype=torch.long, device=device),
    }
