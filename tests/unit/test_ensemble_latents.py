"""Ensembles on a VAE's latents: decoded images, the stored scaling, and the folder with vae/."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from ensemble_fixtures import CLASSES, NAMES, ROUTES, attending_experts, attending_unet, tiny_experts, tiny_vae
from finished_run import expert_files

from ebdiff_orchestrator.ensemble import (
    EnsemblePipeline,
    ListDDIMScheduler,
    TimestepRouter,
    load_ensemble,
    sample_images,
    save_ensemble,
)
from ebdiff_orchestrator.run.finishing import assemble
from region_workers.data.latents.vae import load_vae
from schemas.errors import RunFailed, UserError
from schemas.model import LatentModelPlan
from schemas.plan import DiffusionPlan, Plan, SamplingPlan

VAES = ["AutoencoderKL", "VQModel"]


def pipeline(kind: str = "VQModel") -> EnsemblePipeline:
    router = TimestepRouter(attending_experts(), ROUTES, NAMES).eval()
    return EnsemblePipeline(router, ListDDIMScheduler(num_inference_steps=4, guidance_scale=2.0), tiny_vae(kind))


def draw(pipe: EnsemblePipeline, output_type: str = "pt") -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    options = {"class_labels": [1, 2], "show_progress": False}
    return pipe(2, generator=generators, output_type=output_type, **options).images


@pytest.mark.parametrize("kind", VAES)
def test_images_are_the_decoded_latents(kind: str) -> None:
    pipe = pipeline(kind)
    latents, images = draw(pipe, "latent"), draw(pipe)
    assert (latents.shape, images.shape, images.dtype) == ((2, 3, 4, 4), (2, 1, 8, 8), torch.float32)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / 0.5).sample
    assert torch.equal(images, (decoded / 2 + 0.5).clamp(0, 1))
    assert images.std() > 0.01


def test_a_vaes_shift_is_undone() -> None:
    pipe = pipeline("AutoencoderKL")
    latents = draw(pipe, "latent")
    pipe.vae.register_to_config(shift_factor=0.3)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / 0.5 + 0.3).sample
    assert torch.equal(draw(pipe), (decoded / 2 + 0.5).clamp(0, 1))


def test_pixels_have_no_latents_to_give() -> None:
    pipe = EnsemblePipeline(TimestepRouter(tiny_experts(), ROUTES, NAMES), ListDDIMScheduler())
    with pytest.raises(UserError, match="output_type = latent: expected one of pil, np, pt"):
        pipe(output_type="latent")


@pytest.mark.parametrize("kind", VAES)
def test_a_saved_ensemble_draws_the_same_bits_from_its_folder(tmp_path: Path, kind: str) -> None:
    sampling = SamplingPlan(steps=4, guidance_scale=2.0)
    save_ensemble(
        tmp_path / "ensemble", attending_experts(), ROUTES, NAMES, DiffusionPlan(), sampling, vae=tiny_vae(kind)
    )
    expected = draw(pipeline(kind))
    assert torch.equal(draw(load_ensemble(tmp_path)), expected)
    index = json.loads((tmp_path / "ensemble" / "model_index.json").read_text())
    assert (index["_class_name"], index["vae"]) == ("EnsemblePipeline", ["diffusers", kind])
    files = sorted(file.name for file in (tmp_path / "ensemble" / "vae").iterdir())
    assert files == ["config.json", "diffusion_pytorch_model.safetensors"]
    plain = DiffusionPipeline.from_pretrained(tmp_path / "ensemble")
    assert type(plain) is EnsemblePipeline
    assert torch.equal(draw(plain), expected)


def test_without_classes_latents_are_drawn_too(tmp_path: Path) -> None:
    experts = tiny_experts(in_channels=3, out_channels=3)
    save_ensemble(tmp_path, experts, ROUTES, NAMES, DiffusionPlan(), SamplingPlan(steps=2), vae=tiny_vae())
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert (type(pipe), pipe.num_classes) == (EnsemblePipeline, None)
    assert pipe(1, output_type="np").images.shape == (1, 16, 16, 1)


def test_a_vae_that_does_not_fit_the_experts_is_refused() -> None:
    with pytest.raises(UserError, match=r"vae\.latent_channels = 3: expected 1"):
        EnsemblePipeline(TimestepRouter(tiny_experts(), ROUTES, NAMES), ListDDIMScheduler(), tiny_vae())
    with pytest.raises(UserError, match=r"vae\.scaling_factor = 0"):
        EnsemblePipeline(
            TimestepRouter(attending_experts(), ROUTES, NAMES), ListDDIMScheduler(), tiny_vae(scaling_factor=0)
        )


def test_a_missing_vae_is_named(tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path / "ensemble")
    (tmp_path / "ensemble" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"vae/diffusion_pytorch_model\.safetensors: expected the file as it was saved"):
        load_ensemble(tmp_path)


def test_half_precision_draws_nearly_the_same_image(tmp_path: Path) -> None:
    pipeline("AutoencoderKL").save_pretrained(tmp_path / "ensemble")
    rough = load_ensemble(tmp_path, torch_dtype=torch.bfloat16)
    assert (rough.unet.dtype, rough.vae.dtype) == (torch.bfloat16, torch.bfloat16)
    images = draw(rough)
    assert images.dtype == torch.float32
    assert (images - draw(load_ensemble(tmp_path))).abs().mean() < 0.05


def test_batch_size_changes_nothing_but_rounding() -> None:
    pipe = pipeline("AutoencoderKL")
    images = sample_images(pipe, 5, seed=3, steps=None, batch_size=5)
    assert (images.shape, images.dtype) == ((5, 8, 8, 1), np.uint8)
    by_two = sample_images(pipe, 5, seed=3, steps=None, batch_size=2)
    assert np.abs(images.astype(int) - by_two).max() <= 1
    later = sample_images(pipe, 2, seed=3, steps=None, batch_size=1, first=3)
    assert np.abs(images[3:].astype(int) - later).max() <= 1


@pytest.mark.parametrize("kind", VAES)
def test_a_diverged_expert_is_not_hidden_by_the_vae(kind: str) -> None:
    pipe = pipeline(kind)
    torch.nn.init.constant_(pipe.unet.experts[2].conv_out.weight, float("inf"))
    with pytest.raises(RunFailed, match="not finite"):
        sample_images(pipe, 1, 0, None, 1)


def latent_plan(vae: Path, scaling_factor: float | None) -> Plan:
    """A plan of one region on a VAE's latents, of four classes."""
    return Plan.model_validate(
        {
            "data": {"label_column": "label", "resolution": 8},
            "model": {
                "family": "latent",
                "vae": str(vae),
                "scaling_factor": scaling_factor,
                "num_classes": CLASSES,
                "latent_downscale": 2,
            },
            "regions": [{"train": [0, 1000], "pruning_ratio": 0.5}],
            "sampling": {"guidance_scale": 3.0, "steps": 4},
        }
    )


@pytest.mark.parametrize(("override", "written"), [(None, 0.5), (1.5, 1.5)])
def test_a_run_on_latents_is_assembled_with_its_vae(tmp_path: Path, override: float | None, written: float) -> None:
    tiny_vae().save_pretrained(tmp_path / "first-stage")
    plan = latent_plan(tmp_path / "first-stage", override)
    attending_unet().save_pretrained(tmp_path / "train" / plan.regions[0].name / "expert")
    assert isinstance(plan.model, LatentModelPlan)
    info = load_vae(plan.model, plan.data.channels)[1]
    experts = expert_files(tmp_path, plan)
    files = {file.path for file in assemble(plan, str(tmp_path), experts, info.digest)}
    assert "ensemble/vae/diffusion_pytorch_model.safetensors" in files
    pipe = load_ensemble(tmp_path)
    assert (pipe.vae.config.scaling_factor, pipe.scheduler.config.guidance_scale) == (written, 3.0)
    assert str(tmp_path) not in (tmp_path / "ensemble" / "vae" / "config.json").read_text()
    assert pipe.num_classes == CLASSES
    assert draw(pipe).shape == (2, 1, 8, 8)
    with pytest.raises(RunFailed, match="not the VAE that the latents are of"):
        assemble(plan, str(tmp_path), experts, "another")
