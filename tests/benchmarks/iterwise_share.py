"""What a mask every step costs: iteration-wise drawing beside the plain training step, in one run.

    python tests/benchmarks/iterwise_share.py [--preset cifar10] [--batch-size 128] [--steps 3] [--threads 2]
                                              [--importance magnitude] [--set KEY=VALUE]... [--short] [--json FILE]

A plain step is `Trainer.train_step`; iteration-wise drawing adds all of an interval's end: the scores, the mask,
its distances to the queue and their record. Every step is followed by its mask; the shares are taken step by step.
The first step, which allocates, does not count. A step of the CIFAR-10 network at batch 128 takes 16 s on two cores.
"""

import argparse
import statistics
from pathlib import Path

import torch
from bench import SMALL, arguments, benchmark, parsed, ratio, this_device, timed
from own_loop import job_on_noise

from region_workers.training.device import World, prepare_process
from region_workers.training.draw import Draw
from region_workers.training.family import UNetFamily
from region_workers.training.randomness import StepRandomness


def main() -> None:
    parser = arguments(__doc__, preset="cifar10", batch_size=128, steps=3, changes=[])
    parser.add_argument("--importance", choices=("magnitude", "random"), default="magnitude")
    options = parsed(parser, preset="digits", batch_size=4, steps=2, threads=1, changes=[SMALL])
    with benchmark("a mask every step", options, device=this_device().type) as (report, folder):
        plain, masks = measure(start_draw(options, folder), options.steps)
        report.add("steps", len(plain))
        report.add("a plain step", statistics.median(plain), "s")
        report.add("its mask", statistics.median(masks), "s")
        report.add("the mask over the step", 100 * ratio(masks, plain), "%", at_most=5)


def start_draw(options: argparse.Namespace, folder: Path) -> Draw:
    """The draw of the preset's first region, on images of noise; its ticket never comes."""
    every_step = (f"draw.importance={options.importance}", "draw.interval_steps=1", "draw.threshold=0.000001")
    job, store = job_on_noise(options, folder, *every_step)
    assert job.draw is not None
    prepare_process(job.training)
    world = World(this_device(), 0, 1)
    randomness = StepRandomness(job.seed, "draw", job.draw.timesteps, world.device)
    torch.manual_seed(job.seed)
    return Draw(
        job, job.draw, UNetFamily(job, store.samples(), world.device, randomness.seed_for("data")), randomness, world
    )


def measure(draw: Draw, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each plain step and of the mask that follows it."""
    plain, masks = [], []
    for _ in range(steps + 1):
        plain.append(timed(draw.trainer.train_step))
        masks.append(timed(draw.after_step))
    return plain[1:], masks[1:]


if __name__ == "__main__":
    main()
