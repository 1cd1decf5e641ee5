"""How long one update of a plan's networks takes on this device, on random samples: for estimates before a run."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from region_workers.data.samples import DrawingSamples, LatentSamples, PixelSamples, Samples
from region_workers.networks.pretrained import find_dense
from region_workers.networks.pruned_unet import extract_expert
from region_workers.networks.supported import network_inputs
from region_workers.pruning.groups import find_groups
from region_workers.pruning.mask import kept_at
from region_workers.training.device import World, current_world, prepare_process
from region_workers.training.diffusion import TimestepSampler
from region_workers.training.family import ModelFamily, family_of
from region_workers.training.randomness import StepRandomness
from region_workers.training.trainer import Trainer
from schemas.errors import user_error
from schemas.job import WorkerJob, from_plan
from schemas.manifest import POINTS_COUNTED
from schemas.model import LatentModelPlan, VectorModelPlan
from schemas.plan import Plan

_WARM_UP_STEPS = 3  # on a GPU: kernels are chosen, torch.compile works
_CPU_BUDGET_S = 20.0  # for the dense network; the experts take less
_PROBE_IMAGES, _FEWEST_STEPS = 4, 2


@dataclass(frozen=True)
class StepTime:
    """Seconds of one update of the plan's whole batch, and how they were found.

    `batch_size`: the batch that was timed; where it is smaller than the plan's, the seconds are in proportion.
    `peak_memory_bytes`: allocated on a CUDA device; None on a CPU.
    """

    seconds: float
    steps: int
    batch_size: int
    peak_memory_bytes: int | None


def step_seconds(plan: Plan, steps: int = 5) -> dict[float, float]:
    """Seconds of one update of each of the plan's networks on this process's device, by pruning ratio; 0: dense."""
    prepare_process(plan.training)
    timer = StepTimer(plan, current_world(use_gpu=plan.workers.gpus != 0))
    return {ratio: timer.measure(ratio, steps).seconds for ratio in ratios_of(plan)}


def ratios_of(plan: Plan) -> list[float]:
    """The pruning ratios of the plan's networks, ascending from 0, the dense network."""
    return sorted({0.0, *(region.pruning_ratio for region in plan.regions)})


def random_samples(plan: Plan, count: int) -> Samples:
    """So many random samples, shaped as the plan's images, latents or drawings, with labels if it has classes."""
    generator = np.random.default_rng(0)
    if isinstance(plan.model, VectorModelPlan):
        offsets = POINTS_COUNTED * np.arange(count + 1)
        return DrawingSamples(generator.standard_normal((offsets[-1], 3), dtype=np.float32), offsets)
    classes, side = plan.model.num_classes, plan.data.resolution
    labels = None if classes is None else generator.integers(0, classes, count)
    if not isinstance(plan.model, LatentModelPlan):
        return PixelSamples(generator.integers(0, 256, (count, side, side, plan.data.channels), dtype=np.uint8), labels)
    latent_side = side // plan.model.latent_downscale
    shape = (2 if plan.data.random_flip else 1, count, plan.model.latent_channels, latent_side, latent_side)
    return LatentSamples(generator.standard_normal(shape, dtype=np.float32).astype(np.float16), labels)


class StepTimer:
    """Times updates of the plan's dense network and its experts with the trainer that a run uses."""

    def __init__(self, plan: Plan, world: World) -> None:
        """The process must have been prepared (`prepare_process`) for the plan's threads and determinism."""
        self._plan, self._world = plan, world
        self._dense_digest = find_dense(plan.model.pretrained).digest() if plan.model.pretrained else None
        self._cpu_batch: int | None = None

    def measure(self, ratio: float, steps: int) -> StepTime:
        """An update of the network pruned at `ratio`: of `steps` after a warm-up, the mean on a GPU.

        On a CPU, which others may be using too, the fastest; where the dense network would keep it busy for more than
        about 20 seconds, 2 updates of a smaller batch are timed. UserError if the network does not fit on the device.
        """
        full = self._plan.training.batch_size
        try:
            size = self._affordable_batch(steps)
            steps = steps if size == full else _FEWEST_STEPS
            seconds, memory = self._time(ratio, size, steps)
        except torch.OutOfMemoryError:
            remedy = "Raise training.gradient_accumulation, or use training.precision=bf16."
            expected = "a batch that fits on the device beside the network"
            raise user_error("training.batch_size", full, expected, remedy) from None
        return StepTime(seconds * full / size, steps, size, memory)

    def _affordable_batch(self, steps: int) -> int:
        """The plan's batch; on a CPU, one that the dense network can afford, the same for all so that they compare."""
        full = self._plan.training.batch_size
        if self._world.device.type != "cpu" or full <= _PROBE_IMAGES:
            return full
        if self._cpu_batch is None:
            probe_s, _ = self._time(0.0, _PROBE_IMAGES, steps=1)
            per_image_s = probe_s / _PROBE_IMAGES
            affordable = int(_CPU_BUDGET_S / (_FEWEST_STEPS + 1) / per_image_s)
            fits = full * per_image_s * (steps + 1) <= _CPU_BUDGET_S
            self._cpu_batch = full if fits else min(full - 1, max(_PROBE_IMAGES, affordable))
        return self._cpu_batch

    def _time(self, ratio: float, batch_size: int, steps: int) -> tuple[float, int | None]:
        """Seconds an update and, on a GPU, the peak of its memory."""
        if self._world.device.type == "cpu":
            trainer = self._trainer(ratio, batch_size)
            trainer.train_step()
            return min(_seconds(trainer, 1) for _ in range(steps)), None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._world.device)
        trainer = self._trainer(ratio, batch_size)
        for _ in range(_WARM_UP_STEPS):
            trainer.train_step()
        torch.cuda.synchronize(self._world.device)
        seconds = _seconds(trainer, steps, lambda: torch.cuda.synchronize(self._world.device))
        return seconds, torch.cuda.max_memory_allocated(self._world.device)

    def _trainer(self, ratio: float, batch_size: int) -> Trainer:
        plan = self._plan
        update: dict[str, object] = {"batch_size": batch_size}
        if batch_size != plan.training.batch_size:
            update["gradient_accumulation"] = 1
        training = plan.training.model_copy(update=update)
        span = (0, plan.diffusion.num_train_timesteps)
        randomness = StepRandomness(plan.seed, "timing", span, self._world.device)
        job = timing_job(plan.model_copy(update={"training": training}), self._dense_digest)
        family = family_of(job, random_samples(plan, batch_size), self._world.device, randomness.seed_for("data"))
        sampler = TimestepSampler(span, training.timesteps, plan.diffusion, self._world.device)
        return Trainer(network_at(family, ratio), family, randomness, sampler, training, self._world)


def _seconds(trainer: Trainer, steps: int, wait: Callable[[], None] = lambda: None) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        trainer.train_step()
    wait()
    return (time.perf_counter() - began) / steps


def network_at(family: ModelFamily, ratio: float) -> nn.Module:
    """The family's dense network, or cut to the width of `ratio`: which channels stay does not change what it costs."""
    dense = family.build_dense()
    if ratio == 0:
        return dense
    groups = find_groups(dense, network_inputs(dense))
    return extract_expert(dense, kept_at(groups, ratio))


def timing_job(plan: Plan, dense_digest: str | None = None) -> WorkerJob:
    """A job with what a model family reads of it; it is never run."""
    return WorkerJob(
        name="timing",
        attempt=0,
        run_dir="",
        store_digest="",
        dense_digest=dense_digest,
        draw=None,
        train=None,
        **from_plan(plan),
    )
