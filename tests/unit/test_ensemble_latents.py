"""Ensembles on a VAE's latents: decoded images, the stored scaling, and the folder with vae/."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from ensemble_fixtures import (
    CLASSES,
    NAMES,
    ROUTES,
    VAES,
    attending_experts,
    attending_unet,
    draw,
    ensemble,
    tiny_experts,
    tiny_vae,
)
from finished_run import expert_files

from ebdiff_orchestrator.ensemble import EnsemblePipeline, ListDDIMScheduler, TimestepRouter, ensemble_of, load_ensemble
from ebdiff_orchestrator.run.finishing import assemble
from region_workers.data.vae import load_vae
from schemas.errors import RunFailed, UserError
from schemas.model import LatentModelPlan
from schemas.plan import DiffusionPlan, Plan, SamplingPlan


def pipeline(kind: str = "VQModel") -> EnsemblePipeline:
    return ensemble(kind, num_inference_steps=4, guidance_scale=2.0)


@pytest.mark.parametrize(("kind", "shift"), [*[(kind, None) for kind in VAES], ("AutoencoderKL", 0.3)])
def test_images_are_the_decoded_latents_scaled_and_shifted_back(kind: str, shift: float | None) -> None:
    pipe = pipeline(kind)
    if shift is not None:
        pipe.vae.register_to_config(shift_factor=shift)
    latents, images = draw(pipe, 3, 4, output_type="latent"), draw(pipe, 3, 4)
    assert (latents.shape, images.shape, images.dtype) == ((2, 3, 4, 4), (2, 1, 8, 8), torch.float32)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / 0.5 + (shift or 0)).sample
    assert torch.equal(images, (decoded / 2 + 0.5).clamp(0, 1))
    assert images.std() > 0.01


def test_a_saved_vae_is_two_files(tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path)
    files = sorted(file.name for file in (tmp_path / "vae").iterdir())
    assert files == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_without_classes_latents_are_drawn_too(tmp_path: Path) -> None:
    experts, sampling = tiny_experts(in_channels=3, out_channels=3), SamplingPlan(steps=2)
    ensemble_of(experts, ROUTES, NAMES, DiffusionPlan(), sampling, tiny_vae()).save_pretrained(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert (type(pipe), pipe.num_classes) == (EnsemblePipeline, None)
    assert pipe(1, output_type="np").images.shape == (1, 16, 16, 1)


def test_a_vae_that_does_not_fit_the_experts_is_refused() -> None:
    for experts, vae, message in (
        (tiny_experts(), tiny_vae(), r"vae\.latent_channels = 3: expected 1"),
        (attending_experts(), tiny_vae(scaling_factor=0), r"vae\.scaling_factor = 0"),
    ):
        with pytest.raises(UserError, match=message):
            EnsemblePipeline(TimestepRouter(experts, ROUTES, NAMES), ListDDIMScheduler(), vae)


def test_a_missing_vae_is_named(tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path / "ensemble")
    (tmp_path / "ensemble" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"vae/diffusion_pytorch_model\.safetensors: expected the file as it was saved"):
        load_ensemble(tmp_path)


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
    assert draw(pipe, 3, 4).shape == (2, 1, 8, 8)
    with pytest.raises(RunFailed, match="not the VAE that the latents are of"):
        assemble(plan, str(tmp_path), experts, "another")
