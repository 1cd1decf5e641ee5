"""The ensemble as a pipeline: what it draws, with which schedulers, and how it is saved and loaded."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from ensemble_fixtures import (
    CLASSES,
    KINDS,
    NAMES,
    ROUTES,
    UNCONDITIONAL,
    VAES,
    by_hand,
    draw,
    ensemble,
    noise_of,
    saved_ensemble,
    tiny_experts,
)
from forked import run_forked

from ebdiff_orchestrator.ensemble import (
    EnsemblePipeline,
    TimestepRouter,
    VectorPipeline,
    ensemble_of,
    load_ensemble,
    samples_of,
)
from schemas.errors import RunFailed, UserError
from schemas.plan import DiffusionPlan, SamplingPlan

SAMPLING = SamplingPlan(steps=4, spacing="uniform", eta=0.5, clip_sample=True, guidance_scale=2.0)
SCHEDULER = {"num_inference_steps": 4, "spacing": "uniform", "eta": 0.5, "clip_sample": True, "guidance_scale": 2.0}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run_dir(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an ensemble of the kind, which stays as it is."""
    folder = tmp_path_factory.mktemp(kind)
    saved_ensemble(folder / "ensemble", SAMPLING.model_copy(update=guidance(kind)), kind)
    return folder


def guidance(kind: str) -> dict[str, float]:
    return {"guidance_scale": 1.0 if kind in UNCONDITIONAL else 2.0}


def test_the_pipeline_is_ddim_by_hand_over_the_experts() -> None:
    made = ensemble()
    x = by_hand(made, noise_of((1, 8, 8), 3, 4), lambda expert, x, timestep: expert(x, timestep).sample)
    assert torch.equal(draw(made, 3, 4), (x / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("kind", ["pixels", "classes", "drawings"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_sample_depends_on_its_own_generator_and_class_alone(kind: str, eta: float) -> None:
    made = ensemble(kind, **guidance(kind))
    together = draw(made, 7, 8, 9, 7, eta=eta)
    assert torch.allclose(together[1:2], draw(made, 8, eta=eta), atol=1e-4)
    assert torch.allclose(together[0], together[3], atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize("kind", ["pixels", "AutoencoderKL"])
def test_batch_size_and_where_a_range_begins_change_nothing_but_rounding(kind: str) -> None:
    made = ensemble(kind, num_inference_steps=4, **guidance(kind))
    images = samples_of(made, 5, seed=3, steps=None, batch_size=5)
    assert (images.shape, images.dtype) == ((5, 8, 8, 1), np.uint8)
    for batch_size, first in ((2, 0), (2, 3), (1, 3)):
        part = samples_of(made, 5 - first, seed=3, steps=None, batch_size=batch_size, first=first)
        assert np.abs(images[first:].astype(int) - part).max() <= 1
    other_seed = samples_of(made, 5, seed=4, steps=None, batch_size=5)
    assert np.abs(images.astype(int) - other_seed).max() > 10


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    made = ensemble(eta=1.0)
    state = torch.get_rng_state()
    samples_of(made, 2, seed=3, steps=2, batch_size=2)
    assert torch.equal(state, torch.get_rng_state())


def test_progress_counts_the_steps_of_all_batches() -> None:
    reports: list[tuple[int, int]] = []
    samples_of(ensemble(), 5, 0, 2, batch_size=2, report=lambda done, total: reports.append((done, total)))
    assert reports == [(done, 6) for done in range(1, 7)]


@pytest.mark.parametrize(
    ("kind", "last", "what"),
    [*[(kind, "conv_out", "Images") for kind in ("pixels", *VAES)], ("drawings", "final", "Drawings")],
)
def test_an_expert_that_diverged_is_reported_and_not_drawn(kind: str, last: str, what: str) -> None:
    broken = ensemble(kind, num_inference_steps=3)
    torch.nn.init.constant_(getattr(broken.unet.experts[2], last).weight, float("inf"))
    with pytest.raises(RunFailed, match=f"{what} 0 to 1 of seed 0 are not finite"):
        samples_of(broken, 2, 0, None, 2)


def test_a_saved_ensemble_draws_the_same_bits_from_its_folder_and_its_run_directory(run_dir: Path, kind: str) -> None:
    expected = draw(ensemble(kind, **{**SCHEDULER, **guidance(kind)}), 1, 2)
    for path in (run_dir, run_dir / "ensemble"):
        loaded = load_ensemble(path, device="cpu")
        assert torch.equal(draw(loaded, 1, 2), expected)
    assert loaded.num_classes == (None if kind in UNCONDITIONAL else CLASSES)
    index = json.loads((run_dir / "ensemble" / "model_index.json").read_text())
    named = {"pixels": "DDPMPipeline", "pruned": "DDPMPipeline", "packed": "DDPMPipeline", "drawings": "VectorPipeline"}
    assert index["_class_name"] == named.get(kind, "EnsemblePipeline")
    assert index.get("vae") == (["diffusers", kind] if kind in VAES else None)


def test_plain_diffusers_draws_the_same_bits_once_we_are_imported(run_dir: Path, kind: str, tmp_path: Path) -> None:
    expected = draw(ensemble(kind, **{**SCHEDULER, **guidance(kind)}), 1, 2)
    ours = VectorPipeline if kind == "drawings" else EnsemblePipeline
    pipe = ours.from_pretrained(run_dir / "ensemble")
    assert torch.equal(draw(pipe, 1, 2), expected)
    if kind == "drawings" or kind not in UNCONDITIONAL:  # for the others it has a pipeline of its own
        pipe = DiffusionPipeline.from_pretrained(run_dir / "ensemble")
        assert type(pipe) is ours
        assert torch.equal(draw(pipe, 1, 2), expected)
    pipe.save_pretrained(tmp_path / "again")
    assert torch.equal(draw(load_ensemble(tmp_path / "again"), 1, 2), expected)


@pytest.mark.parametrize("kind", ["pixels", "AutoencoderKL", "drawings"], indirect=True)
def test_half_precision_draws_nearly_the_same(run_dir: Path) -> None:
    rough = load_ensemble(run_dir, torch_dtype=torch.bfloat16)
    networks = [rough.unet, rough.components.get("vae")]
    assert {each.dtype for each in networks if each is not None} == {torch.bfloat16}
    exact, images = draw(load_ensemble(run_dir), 1, 2), draw(rough, 1, 2)
    assert images.dtype == torch.float32
    assert 0 < (images - exact).abs().mean() < 0.05
    assert torch.equal(draw(load_ensemble(run_dir).to(torch.bfloat16), 1, 2), images)


def test_the_router_gets_whole_numbers_from_the_host() -> None:
    made = ensemble()
    seen = []
    made.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    made(1)
    assert [type(timestep) for timestep in seen] == [int] * 6


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pil_images_are_greyscale_or_rgb(channels: int, mode: str) -> None:
    images = ensemble(experts=tiny_experts(in_channels=channels, out_channels=channels))(2).images
    assert [(image.mode, image.size) for image in images] == [(mode, (8, 8))] * 2


def test_steps_timesteps_and_eta_given_by_hand_win_over_the_ensembles() -> None:
    made = ensemble()
    seen: list[int] = []
    made.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    made(1, num_inference_steps=2)
    assert len(seen) == 2
    seen.clear()
    made(1, timesteps=[900, 30, 2])
    assert seen == [900, 30, 2]
    assert not torch.allclose(draw(made, 1), draw(made, 1, eta=1.0), atol=1e-3)


@pytest.mark.parametrize(
    "kind_of_scheduler",
    [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler],
)
@pytest.mark.parametrize("kind", ["pixels", "drawings"])
def test_diffusers_schedulers_can_be_swapped_in(kind_of_scheduler: type, kind: str) -> None:
    made = ensemble(kind, eta=1.0)  # of our scheduler's own; others may know nothing of it
    made.scheduler = kind_of_scheduler.from_config(made.scheduler.config)
    images = draw(made, 1, 2, num_inference_steps=5)
    assert torch.isfinite(images).all()
    assert torch.equal(images, draw(made, 1, 2, num_inference_steps=5))
    assert images.std() > 0.01


def test_a_swapped_in_ddim_scheduler_draws_what_ours_draws_uniformly() -> None:
    made = ensemble(spacing="uniform", num_inference_steps=5)
    ours = draw(made, 1)
    made.scheduler = DDIMScheduler.from_config(made.scheduler.config)
    assert torch.allclose(ours, draw(made, 1), atol=1e-4)


def test_karras_timesteps_with_fractions_reach_their_owners() -> None:
    made = ensemble()
    made.scheduler = HeunDiscreteScheduler.from_config(made.scheduler.config, use_karras_sigmas=True)
    assert torch.isfinite(draw(made, 1, num_inference_steps=5)).all()


@pytest.mark.parametrize(
    ("scheduler", "count", "options", "message"),
    [
        (DPMSolverMultistepScheduler, 1, {"num_inference_steps": 2, "eta": 0.5}, "eta"),
        (DPMSolverMultistepScheduler, 1, {}, "num_inference_steps"),
        (DDIMScheduler, 1, {"timesteps": [3, 2]}, "timesteps"),
        (DDIMScheduler, 0, {}, "batch_size = 0: expected 1 or more"),
        (DDIMScheduler, 3, {"generator": [torch.Generator()] * 2}, "a list of 2: expected 3"),
        (DDIMScheduler, 1, {"output_type": "latent"}, "output_type = latent: expected one of pil, np, pt"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    scheduler: type, count: int, options: dict[str, object], message: str
) -> None:
    made = ensemble()
    made.scheduler = scheduler()
    with pytest.raises(UserError, match=message):
        made(count, **options)


def test_a_pipeline_with_a_swapped_scheduler_keeps_it_when_saved(tmp_path: Path) -> None:
    made = EnsemblePipeline(TimestepRouter(tiny_experts(), ROUTES, NAMES), DPMSolverMultistepScheduler(solver_order=3))
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
    saver = run_forked("-c", program)
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
    half = DiffusionPlan(num_train_timesteps=500)
    with pytest.raises(UserError, match="T = 500"):
        ensemble_of(tiny_experts(), ROUTES, NAMES, half, SamplingPlan()).save_pretrained(tmp_path / "ensemble")
