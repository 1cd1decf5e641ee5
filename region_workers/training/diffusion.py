"""The forward process and the loss of DDPM (arXiv 2006.11239): on which timesteps of a region, and how each counts."""

from collections.abc import Callable

import torch

from schemas.plan import DiffusionPlan, TimestepPlan

_DUAL_GRADIENT = 1e-4


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


class TimestepSampler:
    """Draws the timesteps of a step, from a distribution over [0, T) conditioned on the region.

    `span`: the region [start, stop). `weights_T`: how much each timestep counts in the loss, float32 [T] on the device;
    None where all count alike.
    """

    def __init__(
        self, span: tuple[int, int], plan: TimestepPlan, diffusion: DiffusionPlan, device: torch.device
    ) -> None:
        self.span = span
        weights = loss_weights(plan, diffusion)
        self.weights_T = None if weights is None else weights.float().to(device)
        self._cumulative: torch.Tensor | None = None
        if plan.sampling == "speed":
            start, stop = span
            probabilities = speed_probabilities(plan, diffusion)[start:stop]
            self._cumulative = (probabilities.cumsum(0) / probabilities.sum()).to(device)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """int64 [count] on the generator's device: antithetic pairs if uniform, independent draws else."""
        if self._cumulative is None:
            return antithetic_timesteps(count, self.span, generator)
        places = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
        drawn = torch.searchsorted(self._cumulative, places, right=True)
        return self.span[0] + drawn.clamp_(max=self.span[1] - self.span[0] - 1)


def antithetic_timesteps(count: int, span: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """int64 [count], uniform in [start, stop): each drawn t has a partner start + stop - 1 - t half a batch later."""
    start, stop = span
    half = torch.randint(start, stop, (count // 2 + 1,), generator=generator, device=generator.device)
    return torch.cat([half, start + stop - 1 - half])[:count]


def speed_probabilities(plan: TimestepPlan, diffusion: DiffusionPlan) -> torch.Tensor:
    """How often SpeeD (arXiv 2405.17403) draws each timestep: float64 [T], sums to 1.

    Timesteps below τ are drawn k times as often as the rest; each has a dual timestep |m - t| around the first step m
    where the gradient of sqrt(1 - ᾱ) falls under 1e-4. SpeeD trains on both, in pairs; a region may hold one of the
    two only, so this is the marginal, the mean of the primary and the dual distribution, to be conditioned on
    the region.
    """
    total = diffusion.num_train_timesteps
    primary = torch.ones(total, dtype=torch.float64)
    primary[: plan.speed_tau] = plan.speed_k
    primary /= primary.sum()
    middle = dual_centre(diffusion)
    timesteps = torch.arange(total)
    partner = (middle - timesteps).abs().clamp_(max=total - 1)
    return (primary + torch.zeros_like(primary).index_add_(0, partner, primary)) / 2


def dual_centre(diffusion: DiffusionPlan) -> int:
    """The first step whose gradient of sqrt(1 - ᾱ) is under 1e-4, plus one, as SpeeD's code has it; T if none is."""
    gradient = torch.gradient((1 - alphas_cumprod(diffusion).double()).sqrt())[0]
    flat = (gradient < _DUAL_GRADIENT).nonzero().flatten()
    return int(flat[0]) + 1 if len(flat) else diffusion.num_train_timesteps


def loss_weights(plan: TimestepPlan, diffusion: DiffusionPlan) -> torch.Tensor | None:
    """The weight of each timestep's squared ε-error, float64 [T]; None for the paper's plain loss (all 1)."""
    if plan.weighting == "none":
        return None
    alpha_bar = alphas_cumprod(diffusion).double()
    if plan.weighting == "speed":
        return speed_weights(alpha_bar, plan.speed_tau, plan.speed_lambda)
    snr = alpha_bar / (1 - alpha_bar)
    if plan.weighting == "min-snr":  # arXiv 2303.09556, for ε-prediction
        return (snr.clamp(max=plan.min_snr_gamma) / snr).nan_to_num(nan=1.0)  # 0 / 0 where no signal is left
    return (plan.p2_k + snr) ** -plan.p2_gamma  # P2 (arXiv 2204.00227)


def speed_weights(alpha_bar_T: torch.Tensor, tau: int, lambda_: float) -> torch.Tensor:
    """SpeeD's: below τ the gradient of 1 - ᾱ, rescaled linearly over [0, T) to [1 - λ, λ]; 1 from τ on.

    Of two timesteps there is one gradient, and both count 1.
    """
    gradient = torch.gradient(1 - alpha_bar_T)[0]
    lowest, highest = gradient.min(), gradient.max()
    weights = (1 - lambda_) + (2 * lambda_ - 1) * (gradient - lowest) / (highest - lowest)
    weights[tau:] = 1
    return weights.nan_to_num(nan=1.0)
