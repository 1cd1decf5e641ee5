"""The forward process and its timesteps against their closed forms."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from region_workers.training.diffusion import add_noise, alphas_cumprod, diffusion_loss
from region_workers.training.timesteps import antithetic_timesteps
from schemas.plan import DiffusionPlan


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
