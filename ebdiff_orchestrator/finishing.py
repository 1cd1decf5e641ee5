"""The last two stages: the experts put together as one pipeline, and images drawn from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ebdiff_orchestrator.ensemble.images import sample_images, write_images
from ebdiff_orchestrator.ensemble.pipeline import load_ensemble
from ebdiff_orchestrator.ensemble.saving import save_ensemble
from ebdiff_orchestrator.stages import ASSEMBLE, SAMPLE, train_stage_name
from region_workers.dense import load_network
from region_workers.latents.vae import load_vae
from region_workers.results import artifact, files_in
from schemas.errors import RunFailed
from schemas.job import EXPERT_FOLDER, Artifact
from schemas.model import LatentModelPlan
from schemas.plan import Plan


def assemble(plan: Plan, run_dir: Path, vae_digest: str | None) -> tuple[Artifact, ...]:
    """Write the ensemble of the finished experts, with the VAE of their latents, to `run_dir/ensemble`; its files.

    Raises RunFailed if that VAE is no longer the one of `vae_digest`.
    """
    folders = [run_dir / train_stage_name(region) / EXPERT_FOLDER for region in plan.regions]
    experts = [load_network(folder) for folder in folders]
    names = [region.name for region in plan.regions]
    save_ensemble(
        run_dir / ASSEMBLE, experts, plan.routes(), names, plan.diffusion, plan.sampling, _vae(plan, vae_digest)
    )
    return _artifacts(run_dir, run_dir / ASSEMBLE)


def sample(plan: Plan, run_dir: Path, report: Callable[[int, int], None] | None = None) -> tuple[Artifact, ...]:
    """Write the plan's images and their grid to `run_dir/samples`; the files. On the GPU where there is one."""
    use_gpu = torch.cuda.is_available() and plan.workers.gpus != 0
    device = torch.device("cuda" if use_gpu else "cpu")
    sampling = plan.sampling
    images = sample_images(
        load_ensemble(run_dir / ASSEMBLE, device=device),
        sampling.num_images,
        plan.seed,
        sampling.steps,
        sampling.batch_size,
        report,
    )
    write_images(images, run_dir / SAMPLE)
    return _artifacts(run_dir, run_dir / SAMPLE)


def _vae(plan: Plan, digest: str | None) -> nn.Module | None:
    """The VAE of a plan on latents; its config says how the experts' latents are scaled."""
    if not isinstance(plan.model, LatentModelPlan):
        return None
    vae, info = load_vae(plan.model, plan.data.channels)
    if info.digest != digest:
        raise RunFailed(f"model.vae = {plan.model.vae}: not the VAE that the latents are of. Restore it, then resume.")
    return cast(nn.Module, vae)


def _artifacts(run_dir: Path, folder: Path) -> tuple[Artifact, ...]:
    return tuple(artifact(run_dir, path) for path in files_in(folder))
