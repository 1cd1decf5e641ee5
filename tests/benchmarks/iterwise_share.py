"""What a mask every step costs: iteration-wise drawing against the plain training step, in one run.

    python tests/benchmarks/iterwise_share.py [--preset cifar10] [--batch-size 128] [--steps 3] [--threads 2] [--json]

A plain step is `Trainer.advance`; the mask's share is scores, mask, queue distances and bookkeeping of one interval.
The target is at most 5% on the CIFAR-10 network at batch 128.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from step_share import random_images

from region_workers.device import World, prepare_process
from region_workers.drawing.draw import Draw
from region_workers.family import UNetFamily
from region_workers.randomness import StepRandomness


def measure(preset: str, folder: Path, changes: list[str], steps: int) -> dict[str, float]:
    """Median seconds of a plain step and of the mask that follows it, and the latter's share of the former."""
    job, store = random_images(preset, folder, ["draw.interval_steps=1", "draw.threshold=0.000001", *changes])
    prepare_process(job.training)
    assert job.draw is not None
    world = World(torch.device("cuda" if torch.cuda.is_available() else "cpu"), 0, 1)
    randomness = StepRandomness(job.seed, "draw", job.draw.timesteps, world.device)
    family = UNetFamily(job, store, world.device, randomness.seed_for("data"))
    draw = Draw(job, job.draw, family, randomness, world)
    plain, masks = [], []
    for index in range(steps + 1):
        began = time.perf_counter()
        draw._trainer.advance()
        draw._trainer.check_finite()  # waits for the device
        middle = time.perf_counter()
        draw._take_due_masks()
        ended = time.perf_counter()
        if index:  # the first step allocates
            plain.append(middle - began)
            masks.append(ended - middle)
    step_s, mask_s = statistics.median(plain), statistics.median(masks)
    return {"step_s": step_s, "mask_s": mask_s, "share": mask_s / step_s}


def main() -> None:
    """Print one line, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    changes = [f"training.batch_size={options.batch_size}", f"training.cpu_threads={options.threads}"]
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.preset, Path(folder), changes, options.steps)
    if options.json:
        print(json.dumps({**vars(options), **figures}))
    else:
        print(f"{figures['step_s']:.3f} s a step, {figures['mask_s']:.4f} s its mask: {figures['share']:.2%} of it")


if __name__ == "__main__":
    main()
