"""Which timesteps of its region a step trains on, and how much each counts in the loss."""

import torch

from region_workers.training.diffusion import alphas_cumprod
from schemas.plan import DiffusionPlan, TimestepPlan

_DUAL_GRADIENT = 1e-4


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
    if plan.weighting == "min-snr":
        return min_snr_weights(snr, plan.min_snr_gamma)
    return p2_weights(snr, plan.p2_gamma, plan.p2_k)


def speed_weights(alpha_bar_T: torch.Tensor, tau: int, lambda_: float) -> torch.Tensor:
    """SpeeD's: below τ the gradient of 1 - ᾱ, rescaled linearly over [0, T) to [1 - λ, λ]; 1 from τ on."""
    gradient = torch.gradient(1 - alpha_bar_T)[0]
    lowest, highest = gradient.min(), gradient.max()
    weights = (1 - lambda_) + (2 * lambda_ - 1) * (gradient - lowest) / (highest - lowest)
    weights[tau:] = 1
    return weights


def min_snr_weights(snr_T: torch.Tensor, gamma: float) -> torch.Tensor:
    """Min-SNR (arXiv 2303.09556) for ε-prediction: min(SNR, gamma) / SNR."""
    return snr_T.clamp(max=gamma) / snr_T


def p2_weights(snr_T: torch.Tensor, gamma: float, k: float) -> torch.Tensor:
    """P2 (arXiv 2204.00227): 1 / (k + SNR)^gamma."""
    return (k + snr_T) ** -gamma
