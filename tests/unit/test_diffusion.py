"""The forward process and its loss, the distributions of timesteps and their weights, against their definitions."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from region_workers.training.diffusion import (
    TimestepSampler,
    add_noise,
    alphas_cumprod,
    antithetic_timesteps,
    diffusion_loss,
    dual_centre,
    loss_weights,
    speed_probabilities,
)
from schemas.plan import DiffusionPlan, TimestepPlan

DIFFUSION = DiffusionPlan()
SPEED = TimestepPlan(sampling="speed", weighting="speed")
CPU = torch.device("cpu")


def _alpha_bar() -> np.ndarray:
    return np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def test_the_dual_centre_is_where_the_noise_level_has_flattened() -> None:
    gradient = np.gradient(np.sqrt(1 - _alpha_bar()))
    assert dual_centre(DIFFUSION) == np.argmax(gradient < 1e-4) + 1
    assert 600 < dual_centre(DIFFUSION) < 800


def test_speed_draws_the_mean_of_the_primary_and_the_dual_distribution() -> None:
    middle = dual_centre(DIFFUSION)
    primary = np.where(np.arange(1000) < 700, 5.0, 1.0)
    primary /= primary.sum()
    dual = np.zeros(1000)
    for timestep, probability in enumerate(primary):
        dual[abs(middle - timestep)] += probability
    assert np.allclose(speed_probabilities(SPEED, DIFFUSION).numpy(), (primary + dual) / 2)


def test_where_the_noise_level_never_flattens_the_dual_of_the_first_timestep_is_the_last() -> None:
    steep = DiffusionPlan(num_train_timesteps=100)
    assert dual_centre(steep) == 100
    primary = np.where(np.arange(100) < 30, 5.0, 1.0)
    primary /= primary.sum()
    found = speed_probabilities(TimestepPlan(sampling="speed", speed_tau=30, speed_k=5.0), steep).numpy()
    assert found.sum() == pytest.approx(1)
    assert found[99] == pytest.approx((primary[99] + primary[0] + primary[1]) / 2)
    assert found[98] == pytest.approx((primary[98] + primary[2]) / 2)


@pytest.mark.parametrize("span", [(0, 260), (240, 460), (440, 1000), (0, 1000)])
def test_a_region_draws_from_that_distribution_conditioned_on_itself(span: tuple[int, int]) -> None:
    sampler = TimestepSampler(span, SPEED, DIFFUSION, CPU)
    drawn = sampler.draw(400_000, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    assert int(drawn.min()) >= span[0]
    assert int(drawn.max()) < span[1]
    expected = speed_probabilities(SPEED, DIFFUSION)[span[0] : span[1]]
    expected = (expected / expected.sum()).view(-1, 20).sum(1)
    seen = (torch.bincount(drawn - span[0], minlength=span[1] - span[0]) / len(drawn)).view(-1, 20).sum(1)
    assert torch.allclose(seen.double(), expected, atol=0.004)


def test_speed_weighs_early_timesteps_by_the_rescaled_gradient_and_late_ones_by_1() -> None:
    weights = loss_weights(SPEED, DIFFUSION)
    assert weights is not None
    gradient = np.gradient(1 - _alpha_bar())
    rescaled = 0.4 + 0.2 * (gradient - gradient.min()) / (gradient.max() - gradient.min())
    assert np.allclose(weights[:700].numpy(), rescaled[:700], atol=1e-4)
    assert bool((weights[700:] == 1).all())


def test_speed_weighs_the_only_two_timesteps_alike() -> None:
    weights = loss_weights(SPEED, DiffusionPlan(num_train_timesteps=2))
    assert weights is not None
    assert weights.tolist() == [1, 1]


def test_min_snr_and_p2_are_their_papers_formulas() -> None:
    alpha_bar = alphas_cumprod(DIFFUSION).double()
    snr = alpha_bar / (1 - alpha_bar)
    min_snr = loss_weights(TimestepPlan(weighting="min-snr"), DIFFUSION)
    p2 = loss_weights(TimestepPlan(weighting="p2", p2_gamma=0.5), DIFFUSION)
    assert min_snr is not None
    assert p2 is not None
    assert torch.allclose(min_snr, torch.minimum(snr, torch.tensor(5.0)) / snr)
    assert torch.allclose(p2, 1 / (1 + snr).sqrt())
    assert loss_weights(TimestepPlan(), DIFFUSION) is None


def test_min_snr_weighs_by_1_where_nothing_is_left_of_the_signal() -> None:
    noisy = DiffusionPlan(beta_end=0.3)
    assert float(alphas_cumprod(noisy)[-1]) == 0
    weights = loss_weights(TimestepPlan(weighting="min-snr"), noisy)
    assert weights is not None
    assert float(weights[-1]) == 1
    assert bool((weights[1:] >= weights[:-1]).all())


def test_weights_count_by_absolute_timestep_whatever_the_region() -> None:
    weights = loss_weights(SPEED, DIFFUSION)
    assert weights is not None
    sampler = TimestepSampler((240, 460), SPEED, DIFFUSION, CPU)
    timesteps = torch.tensor([240, 459])
    expected = (weights[240] * 2 + weights[459] * 6) / 2
    noise = torch.tensor([2.0, 6.0]).sqrt().view(2, 1, 1, 1)  # its square is the error of a network that sees none
    loss = diffusion_loss(
        lambda noisy, _: torch.zeros_like(noisy),
        torch.zeros_like(noise),
        timesteps,
        noise,
        alphas_cumprod(DIFFUSION),
        sampler.weights_T,
    )
    assert float(loss) == pytest.approx(float(expected))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_the_forward_process_is_diffusers(schedule: str) -> None:
    plan = DiffusionPlan.model_validate({"beta_schedule": schedule})
    reference = DDPMScheduler(
        num_train_timesteps=1000, beta_start=plan.beta_start, beta_end=plan.beta_end, beta_schedule=schedule
    )
    ours = alphas_cumprod(plan)
    assert torch.allclose(ours, reference.alphas_cumprod, rtol=1e-4)
    clean, noise = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    timesteps = torch.tensor([0, 10, 500, 999])
    expected = reference.add_noise(clean, noise, timesteps)
    assert torch.allclose(add_noise(clean, noise, timesteps, ours), expected, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_timesteps_stay_in_the_region_and_come_in_pairs(count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    timesteps = antithetic_timesteps(count, (240, 460), generator)
    assert timesteps.shape == (count,)
    assert timesteps.min() >= 240
    assert timesteps.max() < 460
    half = count // 2 + 1
    for index in range(count - half):
        assert timesteps[index] + timesteps[half + index] == 240 + 460 - 1


def test_timesteps_cover_the_whole_region_evenly() -> None:
    timesteps = antithetic_timesteps(200_000, (10, 20), torch.Generator().manual_seed(0))
    shares = torch.bincount(timesteps, minlength=20)[10:] / timesteps.numel()
    assert torch.allclose(shares, torch.full((10,), 0.1), atol=0.005)


def test_the_loss_is_summed_over_pixels_and_averaged_over_the_batch() -> None:
    noise = torch.zeros(2, 3, 4, 4)
    predicted = torch.ones(2, 3, 4, 4)
    predicted[1] *= 3
    timesteps = torch.tensor([0, 999])
    loss = diffusion_loss(lambda noisy, t: predicted, noise, timesteps, noise, alphas_cumprod(DiffusionPlan()))
    assert loss.item() == pytest.approx((48 + 9 * 48) / 2)


def test_the_network_sees_the_noisy_samples_and_their_timesteps() -> None:
    clean, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    timesteps, schedule = torch.tensor([10, 500]), alphas_cumprod(DiffusionPlan())
    seen = []

    def predict(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((noisy, t))
        return noise

    assert diffusion_loss(predict, clean, timesteps, noise, schedule).item() == 0
    assert torch.equal(seen[0][0], add_noise(clean, noise, timesteps, schedule))
    assert torch.equal(seen[0][1], timesteps)
