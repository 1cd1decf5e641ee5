"""Where the networks of finished runs err: the loss of each region, beside that of an image's mean, its colour.

    python tests/benchmarks/region_losses.py RUN... [--images 256] [--threads 2] [--short] [--json FILE]

All runs see the same images of their data with the same noise, at every 20th timestep. Of the noise that a run's
networks predict: the mean squared error; and the error of a channel's mean over an image, as root mean square. By the
first run's regions; then the mean of the loss over all timesteps, and of its natural logarithm.
"""

from pathlib import Path

import numpy as np
import torch
from bench import SMALL, arguments, benchmark, parsed

from ebdiff_orchestrator import load_ensemble
from ebdiff_orchestrator.cluster.executor import ThisProcess
from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.run.launch import launch
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.data.store import ensure_store
from region_workers.storage.places import cache_dir_of
from region_workers.training.diffusion import add_noise, alphas_cumprod
from schemas.plan import Plan

_EVERY = 20  # timesteps
_SHORT = (SMALL, "training.steps=1", "regions.2.steps=1", "sampling.num_images=1", "sampling.steps=2")


def main() -> None:
    parser = arguments(__doc__, images=256)
    parser.add_argument("runs", nargs="*", type=Path)
    options = parsed(parser, images=2)
    with benchmark("losses by region", options) as (report, folder):
        if options.short:
            options.runs = [folder / "run"]
            launch(load_plan("digits-slim", list(_SHORT)), options.runs[0], executor=ThisProcess())
        plan = RunDirectory(options.runs[0]).read().plan
        images = images_of(plan, options.images)
        timesteps = torch.arange(_EVERY // 2, plan.diffusion.num_train_timesteps, _EVERY)
        for run in options.runs:
            losses, of_means = errors(run, plan, images, timesteps)
            for start, stop in plan.routes():
                within = (timesteps >= start) & (timesteps < stop)
                report.add(f"{run.name}: loss at {start}-{stop - 1}", float(losses[within].mean()))
                report.add(f"{run.name}: error of the mean at {start}-{stop - 1}", float(of_means[within].mean()))
            report.add(f"{run.name}: loss", float(losses.mean()))
            report.add(f"{run.name}: logarithm of the loss", float(losses.log().mean()))


def images_of(plan: Plan, count: int) -> torch.Tensor:
    """[N, C, H, W] in [-1, 1]: so many of the plan's images, evenly spread."""
    store = ensure_store(plan.data, cache_dir_of(plan.workers.cache_dir))
    chosen = np.linspace(0, len(store) - 1, count).astype(int)
    return torch.from_numpy(np.array(store.array[chosen])).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def errors(run: Path, plan: Plan, images: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each timestep the mean squared error, and the root mean square of the error of a channel's mean."""
    network, schedule = load_ensemble(run).unet, alphas_cumprod(plan.diffusion)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    losses, of_means = [], []
    for timestep in timesteps:
        noisy = add_noise(images, noise, timestep.expand(len(images)), schedule)
        error = network(noisy, timestep).sample - noise
        losses.append(error.square().mean())
        of_means.append(error.mean((2, 3)).square().mean().sqrt())
    return torch.stack(losses), torch.stack(of_means)


if __name__ == "__main__":
    main()
