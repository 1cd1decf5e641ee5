"""Latents of an ensemble's VAE, and the images they stand for."""

from __future__ import annotations

from typing import Any, cast

import torch

from schemas.errors import UserError, problem


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


def decode(vae: Any, latent_BCHW: torch.Tensor) -> torch.Tensor:
    """Images in about [-1, 1], float32 [B, C, H, W], of scaled latents; a VQModel quantises them itself.

    Divides by the VAE's scaling_factor and decodes in the VAE's own precision.
    """
    unscaled = latent_BCHW / vae.config.scaling_factor
    return cast(torch.Tensor, vae.decode(unscaled.to(vae.dtype)).sample.float())
