"""Tiny VAEs with random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel

from schemas.model import LatentModelPlan

_TINY: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 3,
}


def save_kl(folder: Path, seed: int = 0, **arguments: Any) -> Any:
    """An AutoencoderKL that halves the sides; RGB to 3 channels."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(**_TINY | arguments).eval()
    vae.save_pretrained(folder)
    return vae


def save_vq(folder: Path, seed: int = 0, **arguments: Any) -> Any:
    """A VQModel that halves the sides; RGB to 3 channels."""
    torch.manual_seed(seed)
    vae = VQModel(**_TINY | {"num_vq_embeddings": 16, "scaling_factor": 1.0} | arguments).eval()
    vae.save_pretrained(folder)
    return vae


def tiny_vae(folder: Path) -> Path:
    """A VQModel with the scaling of a KL: what a run of latents is given."""
    save_vq(folder, scaling_factor=0.18215)
    return folder


def latent_model(folder: Path, /, **values: Any) -> LatentModelPlan:
    """A model section for those VAEs; by default without classes."""
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (32,)}
    fields = {"family": "latent", "vae": str(folder), "latent_channels": 3, "latent_downscale": 2} | blocks | values
    return LatentModelPlan.model_validate(fields)
