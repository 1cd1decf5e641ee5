"""Whether bf16 training follows fp32's loss curve within its noise.

    python tests/benchmarks/precision.py [--preset digits] [--batch-size 16] [--steps 300] [--seeds 4]
                                         [--threads 2] [--set KEY=VALUE]... [--short] [--json FILE]

For every seed (network, order of the data, timesteps and noise) the preset's dense network is trained in fp32 and in
bf16 on all timesteps, with the same random numbers. Curves are the loss smoothed over a tenth of the steps;
compared is their last half. The noise is how far fp32's curves of different seeds lie apart: the standard deviation
over seeds, at each point of the curve. Two things must be within it:

- the level: the mean over seeds and points of bf16 - fp32, which is what bf16 makes worse or better;
- the distance: the mean over seeds and points of |bf16 - fp32|, which is how far a curve strays.

As a check that the figures can fail, the same distance is shown for one fp32 curve at a tenth of the learning rate.
"""

import argparse
from typing import Any

import torch
from bench import SMALL, Report, arguments, benchmark, parsed, training_changes
from own_loop import OwnLoop, first_job

from ebdiff_orchestrator.plans.load import load_plan
from region_workers.data.store import ImageStore
from schemas.job import WorkerJob

WHOLE_RANGE = "regions=[{train: [0, 1000], pruning_ratio: 0.5}]"


def losses(job: WorkerJob, store: ImageStore, steps: int) -> list[float]:
    """The loss of each step of the dense network's training."""
    loop = OwnLoop(job, store, log=False)
    found = []
    for _ in range(steps):
        loop.step()
        found.append(loop.trainer.read_metrics()[0])
    return found


def curves(job: WorkerJob, store: ImageStore, steps: int, seeds: int, **training: Any) -> torch.Tensor:
    """The last half of the smoothed loss with these options, for each seed: float64 [seeds, points]."""
    changed = job.training.model_copy(update=training)
    jobs = [job.model_copy(update={"training": changed, "seed": seed}) for seed in range(seeds)]
    loss_SK = torch.tensor([losses(one, store, steps) for one in jobs], dtype=torch.float64)
    smooth_SK = loss_SK.unfold(1, max(1, steps // 10), 1).mean(dim=-1)
    return smooth_SK[:, smooth_SK.shape[1] // 2 :]


def measure(job: WorkerJob, store: ImageStore, options: argparse.Namespace, report: Report) -> None:
    """Train them all, and compare."""
    fp32_SP = curves(job, store, options.steps, options.seeds, precision="fp32")
    bf16_SP = curves(job, store, options.steps, options.seeds, precision="bf16")
    slow_rate = job.training.learning_rate / 10
    slow_SP = curves(job, store, options.steps, 1, precision="fp32", learning_rate=slow_rate)
    noise = float(fp32_SP.std(dim=0).mean())
    level = abs(float((bf16_SP - fp32_SP).mean())) / noise
    distance = float((bf16_SP - fp32_SP).abs().mean()) / noise
    slow_distance = float((slow_SP - fp32_SP[:1]).abs().mean()) / noise
    report.add("fp32: loss", float(fp32_SP.mean()))
    report.add("bf16: loss", float(bf16_SP.mean()))
    report.add("noise: deviation over fp32's seeds", noise)
    report.add("level: bf16 - fp32 over the noise", level, "x", at_most=1.0)
    report.add("distance: |bf16 - fp32| over the noise", distance, "x", at_most=1.0)
    report.add("the same, fp32 at a tenth of the learning rate", slow_distance, "x")


def main() -> None:
    parser = arguments(__doc__, preset="digits", batch_size=16, steps=300, seeds=4, changes=[])
    options = parsed(parser, batch_size=4, steps=2, seeds=2, changes=[SMALL])
    plan = load_plan(options.preset, [WHOLE_RANGE, *training_changes(options)])
    with benchmark("bf16 beside fp32", options) as (report, folder):
        measure(*first_job(plan, folder), options, report)


if __name__ == "__main__":
    main()
