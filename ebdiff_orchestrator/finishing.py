"""The last two stages: the experts put together as one pipeline, and images drawn from it."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ebdiff_orchestrator.ensemble.images import sample_images, write_images
from ebdiff_orchestrator.ensemble.pipeline import load_ensemble
from ebdiff_orchestrator.ensemble.saving import save_ensemble
from ebdiff_orchestrator.stages import ASSEMBLE, SAMPLE, train_stage_name
from region_workers.drawing.draw import EXPERT_FOLDER
from region_workers.pruned_unet import PrunedUNet2DModel
from region_workers.results import artifact
from schemas.durable import write_model
from schemas.job import PROGRESS_FILE, Artifact, Progress
from schemas.plan import Plan


def assemble(plan: Plan, run_dir: Path) -> tuple[Artifact, ...]:
    """Write the ensemble of the finished experts to `run_dir/ensemble`; its files."""
    folders = [run_dir / train_stage_name(region) / EXPERT_FOLDER for region in plan.regions]
    experts = [PrunedUNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False) for folder in folders]
    names = [region.name for region in plan.regions]
    save_ensemble(run_dir / ASSEMBLE, experts, plan.routes(), names, plan.diffusion, plan.sampling)
    return _artifacts(run_dir, run_dir / ASSEMBLE)


def sample(plan: Plan, run_dir: Path) -> tuple[Artifact, ...]:
    """Write the plan's images and their grid to `run_dir/samples`; the files. On the GPU where there is one."""
    torch.set_num_threads(max(plan.training.cpu_threads, torch.get_num_threads()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = load_ensemble(run_dir / ASSEMBLE, device=device)
    started_at = time.time()
    progress_file = run_dir / f".{SAMPLE}-{PROGRESS_FILE}"

    def report(done: int, total: int) -> None:
        progress = Progress(stage=SAMPLE, step=done, total_steps=total, stage_started_at=started_at)
        write_model(progress_file, progress.model_copy(update={"updated_at": time.time()}))

    images = sample_images(
        pipeline, plan.sampling.num_images, plan.seed, plan.sampling.steps, plan.sampling.batch_size, report
    )
    write_images(images, run_dir / SAMPLE)
    return _artifacts(run_dir, run_dir / SAMPLE)


def _artifacts(run_dir: Path, folder: Path) -> tuple[Artifact, ...]:
    return tuple(artifact(run_dir, path) for path in sorted(folder.rglob("*")) if path.is_file())
