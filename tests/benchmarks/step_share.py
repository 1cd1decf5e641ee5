"""How much of a training step is not forward, backward, clipping or the optimizer.

    python tests/benchmarks/step_share.py [--preset cifar10] [--batch-size 8] [--steps 12] [--threads 2] [--json]

The same trainer, on random images, timed whole and with a clock around the parts that any loop must have.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ebdiff_orchestrator.plans import load_plan
from ebdiff_orchestrator.stages import Inputs, outline_jobs, worker_job
from region_workers.data.store import ImageStore, ensure_store
from region_workers.device import World, prepare_process
from region_workers.family import UNetFamily
from region_workers.randomness import StepRandomness
from region_workers.recorder import Recorder
from region_workers.timesteps import TimestepLaw
from region_workers.trainer import Trainer
from schemas.job import WorkerJob


class Clock:
    """Seconds spent inside the timed calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


@contextmanager
def timed_essentials(trainer: Trainer, clock: Clock) -> Iterator[None]:
    """Time forward with loss, backward, clipping and the optimizer's step for a while."""
    before = torch.Tensor.backward, nn.utils.clip_grad_norm_
    torch.Tensor.backward = clock.around(before[0])  # type: ignore[method-assign]
    nn.utils.clip_grad_norm_ = clock.around(before[1])  # type: ignore[assignment]
    trainer.network.forward = clock.around(trainer.network.forward)  # type: ignore[method-assign]
    trainer.optimizer.step = clock.around(trainer.optimizer.step)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.backward, nn.utils.clip_grad_norm_ = before  # type: ignore[method-assign]


def random_images(preset: str, folder: Path, changes: list[str]) -> tuple[WorkerJob, ImageStore]:
    """A job of the preset on images of noise."""
    from PIL import Image

    plan = load_plan(preset, changes)
    shape = (plan.data.resolution, plan.data.resolution, 3)
    (folder / "images").mkdir()
    for index in range(max(64, plan.training.batch_size)):
        pixels = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
    plan = load_plan(preset, [f"data.path={folder / 'images'}", *changes])
    store = ensure_store(plan.data, folder / "cache")
    outline = outline_jobs(plan, Inputs(store.digest))[0]
    return worker_job(plan, outline, folder / "run", Inputs(store.digest)), store


def measure(job: WorkerJob, store: ImageStore, steps: int) -> dict[str, float]:
    """Median seconds a step, and the share of it that is the loop's own."""
    prepare_process(job.training)
    assert job.draw is not None
    world = World(torch.device("cpu"), 0, 1)
    randomness = StepRandomness(job.seed, "draw", job.draw.timesteps, world.device)
    family = UNetFamily(job, store, world.device, randomness.seed_for("data"))
    law = TimestepLaw(job.draw.timesteps, job.training.timesteps, job.diffusion, world.device)
    trainer = Trainer(family.build_dense(), family, randomness, law, job.training, world)
    recorder = Recorder(job, job.draw.name, job.draw.key, steps, world, job.training.learning_rate)
    recorder.begin(0, [], 0.0)
    whole, own = [], []
    with timed_essentials(trainer, clock := Clock()):
        for index in range(steps + 2):
            clock.seconds, began = 0.0, time.perf_counter()
            trainer.advance()
            recorder.after_step(trainer)
            seconds = time.perf_counter() - began
            if index >= 2:  # the first steps allocate
                whole.append(seconds)
                own.append((seconds - clock.seconds) / seconds)
    return {"step_s": statistics.median(whole), "own_share": statistics.median(own)}


def main() -> None:
    """Print one line, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    changes = [f"training.batch_size={options.batch_size}", f"training.cpu_threads={options.threads}"]
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(*random_images(options.preset, Path(folder), changes), options.steps)
    if options.json:
        print(json.dumps({**vars(options), **figures}))
    else:
        print(f"{figures['step_s']:.3f} s a step, {figures['own_share']:.2%} of it the loop's own")


if __name__ == "__main__":
    main()
