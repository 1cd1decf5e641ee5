"""What is denoised, and by which network: all that training needs to know of a model family."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import nn

from region_workers.data.batches import BatchSource, DrawingBatches
from region_workers.data.drawing_store import ensure_data
from region_workers.data.latents import open_latents
from region_workers.data.samples import DrawingSamples, Samples
from region_workers.data.store import Store
from region_workers.networks.pretrained import dense_network
from region_workers.training.diffusion import alphas_cumprod
from schemas.digest import seed_from
from schemas.errors import RunFailed
from schemas.job import WorkerJob
from schemas.model import LatentModelPlan, VectorModelPlan


class Batch(NamedTuple):
    """Clean samples [B, ...] in the range that is denoised, and what is told of them, if anything.

    `labels`: their classes, int64 [B]. `lengths`: of drawings, int64 [B] on the CPU. `value_weights`: how much each
    value counts in a sample's loss; None: 1.
    """

    clean: torch.Tensor
    labels: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    value_weights: torch.Tensor | None = None


class ModelFamily(Protocol):
    """The seam for another kind of model.

    `alphas_cumprod`: its noise schedule, float32 [T] on the device. `steps_per_epoch`: batches in one pass over the
    data.
    """

    alphas_cumprod: torch.Tensor
    steps_per_epoch: int

    def build_dense(self) -> nn.Module:
        """As the function `build_dense`."""

    def batch(self, step: int, rows: slice) -> Batch:
        """The rows of step's global batch, on the device."""

    def predict(self, network: nn.Module, batch: Batch, noisy: torch.Tensor, timesteps_B: torch.Tensor) -> torch.Tensor:
        """The noise that the network sees in the batch's noisy samples: as large, in the training's precision."""


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
        self.steps_per_epoch = self._batches.steps_per_epoch

    def build_dense(self) -> nn.Module:
        return build_dense(self._job)

    def batch(self, step: int, rows: slice) -> Batch:
        clean_BCHW = self._batches.batch(step, rows)
        if self._job.training.channels_last:
            clean_BCHW = clean_BCHW.contiguous(memory_format=torch.channels_last)
        return Batch(clean_BCHW, self._batches.labels(step, rows))

    def predict(self, network: nn.Module, batch: Batch, noisy: torch.Tensor, timesteps_B: torch.Tensor) -> torch.Tensor:
        labels = {} if batch.labels is None else {"class_labels": batch.labels}
        bf16 = self._job.training.precision == "bf16"
        with torch.autocast(noisy.device.type, dtype=torch.bfloat16, enabled=bf16):
            predicted_BCHW: torch.Tensor = network(noisy, timesteps_B, return_dict=False, **labels)[0]
        return predicted_BCHW


class VectorFamily:
    """Drawings, as rows of points, denoised by a DrawingGRU."""

    def __init__(self, job: WorkerJob, samples: DrawingSamples, device: torch.device, data_seed: int) -> None:
        self._job, self._samples = job, samples
        self.alphas_cumprod = alphas_cumprod(job.diffusion).to(device)
        self._batches = DrawingBatches(samples, device, job.training.batch_size, data_seed)
        self.steps_per_epoch = self._batches.steps_per_epoch

    def build_dense(self) -> nn.Module:
        return build_dense(self._job, self._samples)

    def batch(self, step: int, rows: slice) -> Batch:
        """A drawing's loss is the mean over its values (arXiv 2304.03785): the padding counts nothing."""
        clean_BL3, lengths_B = self._batches.batch(step, rows)
        lengths_B1 = lengths_B.unsqueeze(1)
        weights_BL = (torch.arange(clean_BL3.shape[1]) < lengths_B1) / (3.0 * lengths_B1)
        return Batch(clean_BL3, lengths=lengths_B, value_weights=weights_BL.unsqueeze(2).to(clean_BL3.device))

    def predict(self, network: nn.Module, batch: Batch, noisy: torch.Tensor, timesteps_B: torch.Tensor) -> torch.Tensor:
        predicted_BL3: torch.Tensor = network(noisy, timesteps_B, lengths=batch.lengths, return_dict=False)[0]
        return predicted_BL3


def build_dense(job: WorkerJob, drawings: DrawingSamples | None = None) -> nn.Module:
    """The unpruned network that every draw of the run begins with, on the CPU: fresh, or with the plan's dense start.

    `drawings`: those that it is to draw, if it draws: it knows how long they are.
    """
    torch.manual_seed(seed_from(job.seed, "initial weights"))
    network = dense_network(job.model, job.data, job.dense_digest)
    if drawings is not None:
        total, counts = job.diffusion.num_train_timesteps, np.bincount(drawings.lengths).tolist()
        cast(Any, network).register_to_config(num_train_timesteps=total, length_counts=counts)
    return network


def family_of(job: WorkerJob, samples: Samples, device: torch.device, data_seed: int) -> ModelFamily:
    if isinstance(samples, DrawingSamples):
        return VectorFamily(job, samples, device, data_seed)
    return UNetFamily(job, samples, device, data_seed)


def open_samples(job: WorkerJob, cache_dir: Path, device: torch.device, report: Callable[[int, int], None]) -> Store:
    """What the job's network denoises, made ready if need be: drawings, images, or latents.

    RunFailed if they are not those that the run began with. `report` is told how far it is (done, total).
    """
    if isinstance(job.model, LatentModelPlan):
        threads, digest = job.training.cpu_threads, job.store_digest
        return open_latents(job.model, job.data, cache_dir, digest, cpu_threads=threads, device=device, report=report)
    store = ensure_data(job.data, cache_dir, report)
    if store.digest != job.store_digest:
        raise RunFailed(
            f"The {store.what}s of data.path = {job.data.path} are not those the run began with "
            f"(digest {store.digest[:12]}, expected {job.store_digest[:12]}). Restore them, or start a new run."
        )
    return store
