"""What is denoised, and by which network: all that training needs to know of a model family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import nn

from region_workers.data.batches import BatchSource
from region_workers.data.latents import open_latents
from region_workers.data.samples import Samples
from region_workers.data.store import Store, ensure_store
from region_workers.networks.pretrained import dense_network
from region_workers.networks.supported import network_inputs
from region_workers.training.diffusion import alphas_cumprod
from schemas.errors import RunFailed
from schemas.job import WorkerJob
from schemas.model import LatentModelPlan, VectorModelPlan


class Batch(NamedTuple):
    """Clean samples [B, C, H, W] in the range that is denoised, and their class labels int64 [B] if there are any."""

    clean: torch.Tensor
    labels: torch.Tensor | None


class ModelFamily(Protocol):
    """The seam for another kind of model. `alphas_cumprod`: its noise schedule, float32 [T] on the device."""

    alphas_cumprod: torch.Tensor

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the data."""

    def build_dense(self) -> nn.Module:
        """The unpruned network on the CPU: fresh, from torch's default generator, or with the plan's dense start."""

    def example_inputs(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """Arguments of one forward pass of the dense network, batch of one, on the meta device: enough to trace it."""

    def batch(self, step: int, rows: slice) -> Batch:
        """The rows of step's global batch, on the device."""

    def predict(
        self, network: nn.Module, batch: Batch, noisy_BCHW: torch.Tensor, timesteps_B: torch.Tensor
    ) -> torch.Tensor:
        """The noise that the network sees in the batch's noisy samples: [B, C, H, W], in the training's precision."""


class UNetFamily:
    """Images in [-1, 1], or latents, denoised by one of diffusers' UNets, with or without class labels."""

    def __init__(self, job: WorkerJob, samples: Samples, device: torch.device, data_seed: int) -> None:
        assert not isinstance(job.model, VectorModelPlan)
        self._job = job
        self.alphas_cumprod = alphas_cumprod(job.diffusion).to(device)
        self._batches = BatchSource(
            samples,
            device,
            job.training.batch_size,
            job.data.random_flip,
            data_seed,
            job.model.num_classes,
            job.model.label_dropout,
        )

    @property
    def steps_per_epoch(self) -> int:
        return self._batches.steps_per_epoch

    def build_dense(self) -> nn.Module:
        return dense_network(self._job.model, self._job.data, self._job.dense_digest)

    def example_inputs(self, network: nn.Module) -> dict[str, torch.Tensor]:
        return network_inputs(network)

    def batch(self, step: int, rows: slice) -> Batch:
        clean_BCHW = self._batches.batch(step, rows)
        if self._job.training.channels_last:
            clean_BCHW = clean_BCHW.contiguous(memory_format=torch.channels_last)
        return Batch(clean_BCHW, self._batches.labels(step, rows))

    def predict(
        self, network: nn.Module, batch: Batch, noisy_BCHW: torch.Tensor, timesteps_B: torch.Tensor
    ) -> torch.Tensor:
        labels = {} if batch.labels is None else {"class_labels": batch.labels}
        bf16 = self._job.training.precision == "bf16"
        with torch.autocast(noisy_BCHW.device.type, dtype=torch.bfloat16, enabled=bf16):
            predicted_BCHW: torch.Tensor = network(noisy_BCHW, timesteps_B, return_dict=False, **labels)[0]
        return predicted_BCHW


def open_samples(job: WorkerJob, cache_dir: Path, device: torch.device, report: Callable[[int, int], None]) -> Store:
    """What the job's network denoises, made ready if need be: the images, or their latents.

    RunFailed if the images are not those that the run began with. `report` is told how far it is (done, total).
    """
    if isinstance(job.model, LatentModelPlan):
        threads, digest = job.training.cpu_threads, job.store_digest
        return open_latents(job.model, job.data, cache_dir, digest, cpu_threads=threads, device=device, report=report)
    store = ensure_store(job.data, cache_dir, report)
    if store.digest != job.store_digest:
        raise RunFailed(
            f"The images of data.path = {job.data.path} are not those the run began with "
            f"(digest {store.digest[:12]}, expected {job.store_digest[:12]}). Restore them, or start a new run."
        )
    return store
