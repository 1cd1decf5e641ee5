"""The forward process and the loss of DDPM (arXiv 2006.11239), on a region of timesteps."""

from __future__ import annotations

import torch

from schemas.plan import DiffusionPlan


def alphas_cumprod(plan: DiffusionPlan) -> torch.Tensor:
    """ᾱ_t for t in [0, T): float32 [T], computed in float64."""
    steps = plan.num_train_timesteps
    if plan.beta_schedule == "linear":
        betas = torch.linspace(plan.beta_start, plan.beta_end, steps, dtype=torch.float64)
    else:
        betas = torch.linspace(plan.beta_start**0.5, plan.beta_end**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0).float()


def antithetic_timesteps(count: int, timesteps: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """int64 [count], uniform in [start, stop): each drawn t has a partner start + stop - 1 - t half a batch later."""
    start, stop = timesteps
    half = torch.randint(start, stop, (count // 2 + 1,), generator=generator, device=generator.device)
    return torch.cat([half, start + stop - 1 - half])[:count]


def add_noise(
    images_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, timesteps_B: torch.Tensor, alphas_cumprod_T: torch.Tensor
) -> torch.Tensor:
    """x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε (paper, equation 2)."""
    alpha_B111 = alphas_cumprod_T[timesteps_B].view(-1, 1, 1, 1)
    return alpha_B111.sqrt() * images_BCHW + (1.0 - alpha_B111).sqrt() * noise_BCHW


def squared_errors(predicted_BCHW: torch.Tensor, noise_BCHW: torch.Tensor) -> torch.Tensor:
    """Each image's squared error, summed over pixels: float32 [B]; its mean is the paper's loss (equation 3)."""
    return (predicted_BCHW.float() - noise_BCHW).square().sum(dim=(1, 2, 3))
