"""DDIM over any list of timesteps: the closed form, diffusers where it agrees, the reference's loop elsewhere."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from ensemble_fixtures import seeded

from ebdiff_orchestrator.ensemble import ListDDIMScheduler
from ebdiff_orchestrator.ensemble.loading import scheduler_of
from ebdiff_orchestrator.plans.load import load_plan
from schemas.errors import UserError
from schemas.plan import DiffusionPlan, SamplingPlan

Model = Callable[[torch.Tensor, int], torch.Tensor]


BARS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
LDM = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
LDM_SAMPLER = {**LDM, "steps_offset": 1, "set_alpha_to_one": False}


def over(timesteps: list[int], **options: object) -> ListDDIMScheduler:
    """A scheduler about to walk this list."""
    scheduler = ListDDIMScheduler(**options)
    scheduler.set_timesteps(timesteps=timesteps)
    return scheduler


def some_noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(timestep: int | None, image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """x_t by its definition; None: the image itself."""
    bar = 1.0 if timestep is None else BARS[timestep]
    return math.sqrt(bar) * image + math.sqrt(1 - bar) * noise


def some_model(x: torch.Tensor, t: int) -> torch.Tensor:
    """A bounded function of image and timestep that keeps a trajectory in range."""
    return 0.9 * torch.tanh(x) + 0.1 * math.cos(t / 100)


def trajectory(scheduler: ListDDIMScheduler | DDIMScheduler, model: Model, x: torch.Tensor, **options: object) -> list:
    images = []
    for timestep in scheduler.timesteps:
        x = scheduler.step(model(x, int(timestep)), timestep, x, **options).prev_sample
        images.append(x)
    return images


def reference_loop(seq: list[int], model: Model, x: torch.Tensor, eta: float, noises: torch.Tensor) -> torch.Tensor:
    """generalized_steps of the DDIM reference code: seq ascending, seq_next = [-1] + seq[:-1], alpha_bar(-1) = 1."""
    bars = np.concatenate([[1.0], BARS])
    seq_next = [-1, *seq[:-1]]
    for index, (i, j) in enumerate(zip(reversed(seq), reversed(seq_next), strict=True)):
        at, at_next = float(bars[i + 1]), float(bars[j + 1])
        et = model(x, i)
        x0 = (x - et * (1 - at) ** 0.5) / at**0.5
        c1 = eta * ((1 - at / at_next) * (1 - at_next) / (1 - at)) ** 0.5
        c2 = ((1 - at_next) - c1**2) ** 0.5
        x = at_next**0.5 * x0 + c1 * noises[index] + c2 * et
    return x


def test_quadratic_spacing_is_the_papers() -> None:
    scheduler = ListDDIMScheduler()
    scheduler.set_timesteps(100)
    listed = scheduler.timesteps.tolist()
    assert listed == [int(root**2) for root in np.linspace(0, np.sqrt(800), 100)][::-1]
    assert (listed[0], listed[-5:], len(listed)) == (800, [1, 0, 0, 0, 0], 100)
    assert scheduler.timesteps.device.type == "cpu"
    assert scheduler.timesteps.dtype == torch.int64


@pytest.mark.parametrize("steps", [10, 30, 1000])
def test_uniform_spacing_is_diffusers_leading(steps: int) -> None:
    ours, theirs = ListDDIMScheduler(spacing="uniform"), DDIMScheduler()
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_uniform_trajectories_equal_diffusers(schedule: str, clip: bool, eta: float) -> None:
    ours = ListDDIMScheduler(beta_schedule=schedule, spacing="uniform", clip_sample=clip)
    theirs = DDIMScheduler(beta_schedule=schedule, clip_sample=clip)
    images = []
    for scheduler, generator in zip((ours, theirs), seeded(2, 2), strict=True):
        scheduler.set_timesteps(20)
        images.append(trajectory(scheduler, some_model, some_noise(2, 1, 4, 4).float(), eta=eta, generator=generator))
    for our_image, their_image in zip(*images, strict=True):
        assert torch.allclose(our_image, their_image, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_quadratic_trajectories_follow_the_reference_loop(eta: float) -> None:
    scheduler = ListDDIMScheduler()
    scheduler.set_timesteps(50)
    x, [drawing, again] = some_noise(2, 1, 4, 4), seeded(2, 2)
    noises = torch.stack([torch.randn(x.shape, generator=drawing, dtype=x.dtype) for _ in range(50)])
    expected = reference_loop(scheduler.timesteps.tolist()[::-1], some_model, x, eta, noises)
    ours = trajectory(scheduler, some_model, x, eta=eta, generator=again)[-1]
    assert torch.allclose(ours, expected, atol=1e-10)


@pytest.mark.parametrize(("steps", "eta"), [(250, 0.0), (250, 1.0), (20, 0.5)])
def test_with_ldms_offset_and_final_value_a_trajectory_follows_ldms_formula(steps: int, eta: float) -> None:
    """make_ddim_timesteps and make_ddim_sampling_parameters of LDM, p_sample_ddim's step."""
    scheduler = ListDDIMScheduler(spacing="uniform", **LDM_SAMPLER)
    scheduler.set_timesteps(steps)
    ascending = np.arange(0, 1000, 1000 // steps) + 1
    assert scheduler.timesteps.tolist() == ascending[::-1].tolist()
    bars = np.cumprod(1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2)
    at, at_next = bars[ascending], bars[[0, *ascending[:-1]]]
    sigmas = eta * np.sqrt((1 - at_next) / (1 - at) * (1 - at / at_next))
    x, [drawing, again] = some_noise(2, 1, 4, 4), seeded(2, 2)
    ours = trajectory(scheduler, some_model, x, eta=eta, generator=again)[-1]
    for t, a, a_next, sigma in zip(ascending[::-1], at[::-1], at_next[::-1], sigmas[::-1], strict=True):
        eps = some_model(x, int(t))
        x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        noise = torch.randn(x.shape, generator=drawing, dtype=x.dtype) if eta else 0.0
        x = math.sqrt(a_next) * x0 + math.sqrt(1 - a_next - sigma**2) * eps + sigma * noise
    assert torch.allclose(ours, x, atol=1e-10)


def test_the_ldm_preset_samples_as_ldm_does() -> None:
    plan = load_plan("imagenet256-ldm")
    scheduler = scheduler_of(plan.diffusion, plan.sampling)
    scheduler.set_timesteps()
    assert scheduler.timesteps.tolist() == [*range(997, 0, -4)]
    assert {key: scheduler.config[key] for key in LDM_SAMPLER} == LDM_SAMPLER


@pytest.mark.parametrize("options", [{"steps_offset": 1}, {"set_alpha_to_one": False}, LDM_SAMPLER])
def test_offset_and_final_value_are_diffusers_own(options: dict[str, object]) -> None:
    ours = ListDDIMScheduler(spacing="uniform", **options)
    theirs = DDIMScheduler.from_config(ours.config)
    assert not theirs.config.clip_sample
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    ends = [trajectory(scheduler, some_model, some_noise(1, 1, 4, 4).float())[-1] for scheduler in (ours, theirs)]
    assert torch.allclose(*ends, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("total", [35, 1000])
@pytest.mark.parametrize("strength", [0.0, 0.75, 1.0])
def test_over_all_timesteps_the_noise_is_a_share_of_ddpms_around_its_mean(total: int, strength: float) -> None:
    """(x - beta_t / sqrt(1 - abar_t) eps) / sqrt(alpha_t) + strength * sqrt(beta_tilde_t) z; no noise at the end."""
    ends = {"beta_start": 1e-4 * 1000 / total, "beta_end": 2e-2 * 1000 / total}
    sampling = SamplingPlan(steps=total, spacing="uniform", eta=1.0, variance_strength=strength)
    scheduler = scheduler_of(DiffusionPlan(num_train_timesteps=total, **ends), sampling)
    scheduler.set_timesteps()
    assert scheduler.timesteps.tolist() == [*range(total)][::-1]
    x, [drawing, again] = some_noise(2, 7, 3), seeded(2, 2)
    ours = trajectory(scheduler, some_model, x, generator=again)[-1]
    betas = np.linspace(ends["beta_start"], ends["beta_end"], total)
    bars = np.concatenate([[1.0], np.cumprod(1 - betas)])
    for t in reversed(range(total)):
        mean = (x - betas[t] / math.sqrt(1 - bars[t + 1]) * some_model(x, t)) / math.sqrt(1 - betas[t])
        posterior = (1 - bars[t]) / (1 - bars[t + 1]) * betas[t]
        x = mean + strength * math.sqrt(posterior) * torch.randn(x.shape, generator=drawing, dtype=x.dtype)
    assert torch.allclose(ours, x, atol=1e-9)


def test_a_share_of_the_noise_is_saved_and_all_of_it_goes_unsaid(tmp_path: Path) -> None:
    for strength, saved in ((0.75, 0.75), (None, "unsaid")):
        scheduler = scheduler_of(DiffusionPlan(), SamplingPlan(variance_strength=strength))
        scheduler.save_pretrained(tmp_path / str(strength))
        config = json.loads((tmp_path / str(strength) / "scheduler_config.json").read_text())
        assert config.get("variance_strength", "unsaid") == saved
        again = ListDDIMScheduler.from_pretrained(tmp_path / str(strength))
        assert again.config.variance_strength == (strength or 1.0)


def test_diffusers_ddim_goes_wrong_on_the_quadratic_list() -> None:
    ours, theirs = ListDDIMScheduler(), DDIMScheduler(clip_sample=False)
    ours.set_timesteps(20)
    theirs.set_timesteps(20)
    theirs.timesteps = ours.timesteps
    x = some_noise(1, 1, 4, 4).float()
    difference = trajectory(ours, some_model, x)[-1] - trajectory(theirs, some_model, x)[-1]
    assert difference.abs().max() > 0.05


def test_one_step_is_equation_12() -> None:
    x, eps = some_noise(2, 1, 2, 2, 2)
    result = over([700, 123]).step(eps, 700, x)
    x0 = (x - math.sqrt(1 - BARS[700]) * eps) / math.sqrt(BARS[700])
    assert torch.allclose(result.pred_original_sample, x0)
    assert torch.allclose(result.prev_sample, mixed(123, x0, eps))


def test_a_perfect_model_gives_the_image_back_whatever_the_list() -> None:
    image, noise = some_noise(2, 3, 1, 4, 4)
    for listed in ([999, 500, 499, 3], [800, 0, 0], [7]):
        start = mixed(listed[0], image, noise)
        assert torch.allclose(trajectory(over(listed), lambda x, timestep: noise, start)[-1], image)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_repeated_timestep_changes_nothing(eta: float) -> None:
    scheduler = over([40, 40, 0])
    x, eps = torch.randn(2, 1, 1, 4, 4)
    assert torch.allclose(scheduler.step(eps, 40, x, eta=eta).prev_sample, x, atol=1e-6)
    assert not torch.allclose(scheduler.step(eps, 40, x, eta=eta).prev_sample, x, atol=1e-2)


def test_the_first_timestep_says_where_in_the_list_to_begin() -> None:
    x, eps = torch.randn(2, 1, 1, 4, 4)
    whole, tail = (over(timesteps).step(eps, 500, x).prev_sample for timesteps in ([900, 500, 100], [500, 100]))
    assert torch.equal(whole, tail)


@pytest.mark.parametrize(
    ("walked", "wrong"),
    [([], (1000, -1)), ([900], (900, 950)), ([900, 500], (500, 450)), ([500], (900,))],
    ids=["outside", "before", "after the end", "backwards"],
)
def test_a_timestep_out_of_turn_is_an_error(walked: list[int], wrong: tuple[int, ...]) -> None:
    scheduler = over([900, 500])
    x = torch.zeros(1, 1, 2, 2)
    for timestep in walked:
        scheduler.step(x, timestep, x)
    for timestep in wrong:
        with pytest.raises(UserError, match=f"timestep = {timestep}.*set_timesteps"):
            scheduler.step(x, timestep, x)


@pytest.mark.parametrize(("timestep", "following"), [(999, 900), (450, 100), (101, 100), (99, None)])
def test_a_timestep_that_is_not_in_the_list_steps_to_the_nearest_below_and_goes_on(
    timestep: int, following: int | None
) -> None:
    scheduler = over([900, 500, 100])
    image, noise = some_noise(2, 1, 1, 2, 2)
    stepped = scheduler.step(noise, timestep, mixed(timestep, image, noise)).prev_sample
    assert torch.allclose(stepped, mixed(following, image, noise))
    if following is not None:
        scheduler.step(noise, following, stepped)


def test_trained_betas_stand_in_for_the_schedule_and_are_saved(tmp_path: Path) -> None:
    betas = np.linspace(0.01, 0.3, 50)
    scheduler = ListDDIMScheduler(trained_betas=betas)
    scheduler.save_pretrained(tmp_path)
    again = ListDDIMScheduler.from_pretrained(tmp_path)
    scheduled = ListDDIMScheduler(num_train_timesteps=50, beta_start=0.01, beta_end=0.3)
    assert len(again) == 50
    assert scheduler.betas.tolist() == again.betas.tolist() == scheduled.betas.tolist()


def test_the_config_notes_what_was_left_out_so_that_other_schedulers_take_their_own_defaults(tmp_path: Path) -> None:
    scheduler = ListDDIMScheduler(eta=0.5)
    left_out = scheduler.config["_use_default_values"]
    assert "steps_offset" in left_out
    assert not {"eta", "clip_sample"} & set(left_out), "our clip_sample holds where another scheduler has another one"
    scheduler.save_pretrained(tmp_path)
    again = ListDDIMScheduler.from_pretrained(tmp_path).config
    assert {**scheduler.config, "_use_default_values": left_out} == {**again, "_use_default_values": left_out}


def test_a_config_saved_before_there_were_offsets_samples_as_it_did(tmp_path: Path) -> None:
    ListDDIMScheduler(num_inference_steps=5).save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    old = {k: v for k, v in json.loads(file.read_text()).items() if k not in (*LDM_SAMPLER, "trained_betas")}
    file.write_text(json.dumps(old))
    scheduler = ListDDIMScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps()
    assert scheduler.timesteps.tolist() == [800, 450, 200, 50, 0]
    assert (scheduler.config.steps_offset, scheduler.config.set_alpha_to_one) == (0, True)


def test_a_step_reads_nothing_from_the_device() -> None:
    scheduler = ListDDIMScheduler(clip_sample=True)
    scheduler.set_timesteps(3)
    x = torch.zeros(2, 1, 4, 4, device="meta")
    for timestep in scheduler.timesteps:
        x = scheduler.step(x, timestep, x, eta=1.0).prev_sample
    assert x.device.type == "meta"


def test_the_configs_eta_and_steps_are_the_defaults() -> None:
    scheduler = ListDDIMScheduler(eta=1.0, num_inference_steps=7)
    scheduler.set_timesteps()
    assert len(scheduler.timesteps) == 7
    x, eps = torch.randn(2, 1, 1, 4, 4)
    first = scheduler.timesteps[0]
    noisy = scheduler.step(eps, first, x, generator=seeded(0)[0]).prev_sample
    scheduler.set_timesteps()
    assert not torch.allclose(noisy, scheduler.step(eps, first, x, eta=0.0).prev_sample, atol=1e-3)


def test_add_noise_is_the_forward_process() -> None:
    image, noise = torch.randn(2, 2, 1, 4, 4)
    noisy = ListDDIMScheduler().add_noise(image, noise, torch.tensor([0, 600]))
    expected = DDIMScheduler().add_noise(image, noise, torch.tensor([0, 600]))
    assert torch.allclose(noisy, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        *[({}, {"timesteps": listed}, "timesteps") for listed in ([1000], [5, -1], [5, 6], [])],
        *[({}, {"num_inference_steps": count}, "num_inference_steps") for count in (None, -1, 0)],
        ({"steps_offset": 1}, {"num_inference_steps": 1000}, "steps_offset = 1: expected at most 0 "),
        ({"spacing": "quadratic", "steps_offset": 200}, {"num_inference_steps": 10}, "200: expected at most 199 "),
        ({"num_train_timesteps": 100}, {"num_inference_steps": 101}, "at most 100"),
        ({"beta_schedule": "cosine"}, {}, "beta_schedule"),
        *[({"eta": eta}, {}, "eta") for eta in (2.0, -0.1)],
        *[({"variance_strength": share}, {}, "variance_strength") for share in (1.5, float("nan"))],
    ],
)
def test_settings_and_lists_that_cannot_be_walked_are_refused(
    scheduler: dict[str, object], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ListDDIMScheduler(**{"spacing": "uniform", **scheduler}).set_timesteps(**options)
