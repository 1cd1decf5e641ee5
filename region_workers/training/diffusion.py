"""The forward process and the loss of DDPM (arXiv 2006.11239)."""

from collections.abc import Callable

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


def add_noise(
    clean: torch.Tensor, noise: torch.Tensor, timesteps_B: torch.Tensor, alphas_cumprod_T: torch.Tensor
) -> torch.Tensor:
    """x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε (paper, equation 2), as clean and noise [B, ...]."""
    alpha = alphas_cumprod_T[timesteps_B].view(-1, *[1] * (clean.ndim - 1))
    return alpha.sqrt() * clean + (1.0 - alpha).sqrt() * noise


def diffusion_loss(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    clean: torch.Tensor,
    timesteps_B: torch.Tensor,
    noise: torch.Tensor,
    alphas_cumprod_T: torch.Tensor,
    weights_T: torch.Tensor | None = None,
    value_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean over the batch of w_t ||ε - ε_θ(x_t, t)||², summed over pixels (paper, equation 3): float32 [].

    `predict` is ε_θ: from x_t, as clean and noise [B, ...], and t [B] to the noise in it. Without `weights_T` every w_t
    is 1. `value_weights`: how much each value of a sample counts in its sum; None: 1.
    """
    noisy = add_noise(clean, noise, timesteps_B, alphas_cumprod_T)
    errors = (predict(noisy, timesteps_B).float() - noise).square()
    if value_weights is not None:
        errors = errors * value_weights
    errors_B = errors.sum(dim=tuple(range(1, errors.ndim)))
    return errors_B.mean() if weights_T is None else (weights_T[timesteps_B] * errors_B).mean()
