"""The VAE of an ensemble on latents: read from its folder, and checked against the experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ebdiff_orchestrator.ensemble.network_files import cast_to, read_network
from schemas.errors import UserError, problem


def read_vae(folder: Path, path: str, dtype: torch.dtype | None) -> Any:
    """The VAE in `folder`, whose `class_path` is `path`, on the CPU; in `dtype` if one is given."""
    return cast_to(read_network(folder, path), dtype)


def check_vae(vae: Any, channels: int) -> None:
    """Raise `UserError` unless `vae` decodes latents of `channels` channels and says how they are scaled."""
    config = vae.config
    factor = config.get("scaling_factor")
    if not factor or factor < 0:
        raise UserError(
            problem("vae.scaling_factor", factor, "a number above 0 in the VAE's config", "Set model.scaling_factor.")
        )
    latent_channels = config.get("vq_embed_dim") or config.get("latent_channels")
    if latent_channels != channels:
        raise UserError(
            problem(
                "vae.latent_channels",
                latent_channels,
                f"{channels}, the experts' in_channels",
                "Use the VAE that the experts were trained with.",
            )
        )
