"""The ensemble as a pipeline: what it draws, with which schedulers, and how it is saved and loaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from ensemble_fixtures import NAMES, ROUTES, saved_ensemble, tiny_experts

from ebdiff_orchestrator.ensemble import EnsemblePipeline, ListDDIMScheduler, TimestepRouter, load_ensemble
from schemas.errors import UserError
from schemas.plan import SamplingPlan


def pipeline(scheduler: object | None = None, **options: object) -> EnsemblePipeline:
    router = TimestepRouter(tiny_experts(**options), ROUTES, NAMES).eval()
    made = EnsemblePipeline(router, scheduler or ListDDIMScheduler(num_inference_steps=6))
    made.set_progress_bar_config(disable=True)
    return made


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_pipeline_is_ddim_by_hand_over_the_experts() -> None:
    made = pipeline()
    images = made(2, generator=seeded(3, 4), output_type="pt").images
    scheduler = ListDDIMScheduler()
    scheduler.set_timesteps(6)
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=generator) for generator in seeded(3, 4)])
    with torch.no_grad():
        for timestep in scheduler.timesteps.tolist():
            owner = sum(timestep >= start for start, _ in ROUTES) - 1
            x = scheduler.step(made.unet.experts[owner](x, timestep).sample, timestep, x).prev_sample
    assert torch.equal(images, (x / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_depends_on_its_own_generator_alone(eta: float) -> None:
    made = pipeline()
    together = made(3, generator=seeded(7, 8, 9), eta=eta, output_type="pt").images
    alone = made(1, generator=seeded(8), eta=eta, output_type="pt").images
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_the_router_gets_whole_numbers_from_the_host() -> None:
    made = pipeline()
    seen = []
    made.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    made(1)
    assert [type(timestep) for timestep in seen] == [int] * 6


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pil_images_are_greyscale_or_rgb(channels: int, mode: str) -> None:
    images = pipeline(in_channels=channels, out_channels=channels)(2).images
    assert [(image.mode, image.size) for image in images] == [(mode, (8, 8))] * 2


def test_steps_timesteps_and_eta_given_by_hand_win_over_the_ensembles() -> None:
    made = pipeline()
    seen: list[int] = []
    made.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    made(1, num_inference_steps=2)
    assert len(seen) == 2
    seen.clear()
    made(1, timesteps=[900, 30, 2])
    assert seen == [900, 30, 2]
    plain = made(1, generator=seeded(1), output_type="np").images
    assert not np.allclose(plain, made(1, generator=seeded(1), eta=1.0, output_type="np").images, atol=1e-3)


@pytest.mark.parametrize(
    "kind", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler]
)
def test_diffusers_schedulers_can_be_swapped_in(kind: type) -> None:
    made = pipeline()
    made.scheduler = kind.from_config(made.scheduler.config)
    images = made(2, generator=seeded(1, 2), num_inference_steps=5, output_type="np").images
    assert np.isfinite(images).all()
    again = made(2, generator=seeded(1, 2), num_inference_steps=5, output_type="np").images
    assert np.array_equal(images, again)
    assert images.std() > 0.01


def test_a_swapped_in_ddim_scheduler_draws_what_ours_draws_uniformly() -> None:
    made = pipeline(ListDDIMScheduler(spacing="uniform", num_inference_steps=5))
    ours = made(1, generator=seeded(1), output_type="np").images
    made.scheduler = DDIMScheduler.from_config(made.scheduler.config)
    assert np.allclose(ours, made(1, generator=seeded(1), output_type="np").images, atol=1e-4)


def test_karras_timesteps_with_fractions_reach_their_owners() -> None:
    made = pipeline()
    made.scheduler = HeunDiscreteScheduler.from_config(made.scheduler.config, use_karras_sigmas=True)
    assert np.isfinite(made(1, num_inference_steps=5, output_type="np").images).all()


def test_options_that_a_scheduler_does_not_take_are_refused() -> None:
    made = pipeline(DPMSolverMultistepScheduler())
    with pytest.raises(UserError, match="eta"):
        made(1, num_inference_steps=2, eta=0.5)
    with pytest.raises(UserError, match="num_inference_steps"):
        made(1)
    made.scheduler = DDIMScheduler()
    with pytest.raises(UserError, match="timesteps"):
        made(1, timesteps=[3, 2])
    with pytest.raises(UserError, match="a list of 2: expected 3"):
        made(3, generator=seeded(1, 2))
    with pytest.raises(UserError, match="output_type"):
        made(1, num_inference_steps=2, output_type="latent")


def test_half_precision_experts_draw_nearly_the_same_image() -> None:
    made = pipeline()
    exact = made(1, generator=seeded(1), output_type="np").images
    made.to(torch.bfloat16)
    rough = made(1, generator=seeded(1), output_type="np").images
    assert 0 < np.abs(exact - rough).max() < 0.05


def test_a_saved_ensemble_draws_the_same_bits_from_its_folder_and_its_run_directory(tmp_path: Path) -> None:
    experts = saved_ensemble(tmp_path / "ensemble", SamplingPlan(steps=4, spacing="uniform", eta=0.5, clip_sample=True))
    scheduler = ListDDIMScheduler(spacing="uniform", eta=0.5, clip_sample=True, num_inference_steps=4)
    expected = EnsemblePipeline(TimestepRouter(experts, ROUTES, NAMES), scheduler)(
        2, generator=seeded(1, 2), output_type="pt"
    ).images
    for path in (tmp_path, tmp_path / "ensemble"):
        loaded = load_ensemble(path, device="cpu")
        assert torch.equal(loaded(2, generator=seeded(1, 2), output_type="pt").images, expected)
    assert load_ensemble(tmp_path, torch_dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_a_pipeline_with_a_swapped_scheduler_keeps_it_when_saved(tmp_path: Path) -> None:
    made = pipeline(DPMSolverMultistepScheduler(solver_order=3))
    made.save_pretrained(tmp_path / "ensemble")
    scheduler = load_ensemble(tmp_path).scheduler
    assert (type(scheduler), scheduler.config.solver_order) == (DPMSolverMultistepScheduler, 3)


def test_a_folder_that_is_no_ensemble_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ebdiff launch"):
        load_ensemble(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}')
    with pytest.raises(UserError, match="expected an ensemble"):
        load_ensemble(tmp_path)


def test_a_saver_killed_halfway_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    program = f"""
import os, signal
from ensemble_fixtures import saved_ensemble
from ebdiff_orchestrator.ensemble import router
def write_network(expert, folder, real=router.write_network):
    real(expert, folder)
    if folder.name == "240-460":
        os.kill(os.getpid(), signal.SIGKILL)
router.write_network = write_network
from pathlib import Path
saved_ensemble(Path({str(tmp_path / "ensemble")!r}))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    saver = subprocess.run([sys.executable, "-c", program], env=environment, timeout=120, check=False)
    assert saver.returncode == -signal.SIGKILL
    assert not (tmp_path / "ensemble").exists()
    with pytest.raises(UserError):
        load_ensemble(tmp_path)
    saved_ensemble(tmp_path / "ensemble")
    assert load_ensemble(tmp_path)(1).images


def test_an_ensemble_replaces_an_older_one_and_nothing_else(tmp_path: Path) -> None:
    saved_ensemble(tmp_path / "ensemble", SamplingPlan(steps=3))
    saved_ensemble(tmp_path / "ensemble", SamplingPlan(steps=9))
    assert load_ensemble(tmp_path).scheduler.config.num_inference_steps == 9
    with pytest.raises(UserError, match="new or empty folder"):
        saved_ensemble(tmp_path)
    assert (tmp_path / "ensemble" / "model_index.json").exists()


def test_routes_that_do_not_end_with_the_timesteps_are_not_saved(tmp_path: Path) -> None:
    from ebdiff_orchestrator.ensemble import save_ensemble
    from schemas.plan import DiffusionPlan

    with pytest.raises(UserError, match="T = 500"):
        save_ensemble(
            tmp_path / "ensemble",
            tiny_experts(),
            ROUTES,
            NAMES,
            DiffusionPlan(num_train_timesteps=500),
            SamplingPlan(),
        )


def test_loading_needs_no_cluster_no_pruning_library_and_no_socket(tmp_path: Path) -> None:
    saved_ensemble(tmp_path / "ensemble")
    program = f"""
import sys
def refuse_sockets(event, arguments): assert not event.startswith("socket."), (event, arguments)
sys.addaudithook(refuse_sockets)
from ebdiff_orchestrator.ensemble import load_ensemble
load_ensemble({str(tmp_path)!r})(1)
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & {{"ray", "torch_pruning"}}, loaded
ours = {{name for name in sys.modules if name.startswith("ebdiff_orchestrator.")}}
others = {{name for name in ours if not name.startswith("ebdiff_orchestrator.ensemble")}}
assert others == {{"ebdiff_orchestrator.own_packages"}}, others
"""
    subprocess.run([sys.executable, "-c", program], timeout=120, check=True)
