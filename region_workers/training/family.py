"""What the loop needs of a model family: its dense network, one batch, the errors of one forward pass."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import nn

from region_workers.data.batches import BatchSource
from region_workers.data.samples import SampleStore
from region_workers.networks.pretrained import dense_network
from region_workers.networks.supported import network_inputs
from region_workers.training.diffusion import add_noise, alphas_cumprod, squared_errors
from schemas.job import WorkerJob


class Batch(NamedTuple):
    """Clean samples [B, C, H, W] in the range that is denoised, and their class labels int64 [B] if there are any."""

    clean: torch.Tensor
    labels: torch.Tensor | None


class ModelFamily(Protocol):
    """The seam for what is denoised and by which network."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the data."""

    def build_dense(self) -> nn.Module:
        """The unpruned network on the CPU: fresh, from torch's default generator, or with the plan's dense start."""

    def example_inputs(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """Arguments of one forward pass of the dense network, batch of one, on the meta device: enough to trace it."""

    def batch(self, step: int, rows: slice) -> Batch:
        """The rows of step's global batch, on the device."""

    def errors(self, network: nn.Module, batch: Batch, timesteps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Each sample's error after one forward pass: float32 [B]."""


class UNetFamily:
    """Images in [-1, 1], or latents, denoised by one of diffusers' UNets, with or without class labels."""

    def __init__(self, job: WorkerJob, store: SampleStore, device: torch.device, data_seed: int) -> None:
        self._job = job
        self._alphas_cumprod = alphas_cumprod(job.diffusion).to(device)
        self._batches = BatchSource(
            store,
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

    def errors(self, network: nn.Module, batch: Batch, timesteps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        noisy_BCHW = add_noise(batch.clean, noise, timesteps, self._alphas_cumprod)
        labels = {} if batch.labels is None else {"class_labels": batch.labels}
        return squared_errors(network(noisy_BCHW, timesteps, return_dict=False, **labels)[0], noise)
