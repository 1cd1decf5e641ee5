"""Batches as a function of the step: which images, which of them mirrored, as floats on the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from region_workers.data.store import ImageStore
from schemas.digest import seed_from
from schemas.errors import plan_error

RESIDENT_LIMIT_BYTES = 2 << 30
_COPY_IMAGES = 4096


class BatchSource:
    """Serves batch k of a stream of epochs, each a permutation of the store, as a pure function of (seed, k).

    An epoch has N // batch_size batches; the images of its incomplete tail wait for the next permutation. Raises
    PlanError if a batch is larger than the store.
    """

    def __init__(self, store: ImageStore, device: torch.device, batch_size: int, random_flip: bool, seed: int) -> None:
        if batch_size > len(store):
            remedy = "Lower training.batch_size or add images."
            raise plan_error("training.batch_size", batch_size, f"at most the {len(store)} images of the data", remedy)
        self.batch_size = batch_size
        self.steps_per_epoch = len(store) // batch_size
        self._device = device
        self._random_flip = random_flip
        self._seed = seed
        self._images_NHWC: npt.NDArray[np.uint8] = np.asarray(store.images)
        self._resident_NHWC = self._on_device() if self._fits_on_device() else None
        self._epoch, self._permutation = 0, self._permute(0)

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """The images of the global batch of `step`: int64 [batch_size]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, self._permute(epoch)
        return self._permutation[position * self.batch_size : (position + 1) * self.batch_size].copy()

    def flips(self, step: int) -> npt.NDArray[np.bool_]:
        """Which images of the global batch of `step` are mirrored: bool [batch_size]."""
        if not self._random_flip:
            return np.zeros(self.batch_size, dtype=np.bool_)
        generator = np.random.Generator(np.random.PCG64(seed_from(self._seed, "flip", step)))
        return generator.random(self.batch_size) < 0.5

    def batch(self, step: int, rows: slice = slice(None)) -> torch.Tensor:
        """The rows of the global batch of `step` as float32 [rows, C, H, W] in [-1, 1] on the device."""
        images_BHWC = self._gather(self.indices(step)[rows])
        if self._random_flip:
            mirrored = self._to_device(torch.from_numpy(self.flips(step)[rows])).view(-1, 1, 1, 1)
            images_BHWC = torch.where(mirrored, images_BHWC.flip(2), images_BHWC)
        images_BCHW = images_BHWC.permute(0, 3, 1, 2).contiguous()
        return images_BCHW.to(torch.float32).div_(127.5).sub_(1.0)

    def _permute(self, epoch: int) -> npt.NDArray[np.int64]:
        generator = np.random.Generator(np.random.PCG64(seed_from(self._seed, "epoch", epoch)))
        return generator.permutation(len(self._images_NHWC)).astype(np.int64, copy=False)

    def _gather(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        if self._resident_NHWC is not None:
            return self._resident_NHWC.index_select(0, self._to_device(torch.from_numpy(indices)))
        return self._to_device(torch.from_numpy(self._images_NHWC[indices]))

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cuda":
            return tensor.to(self._device)
        # From pinned memory the copy runs beside the computation; from pageable memory it would wait for it.
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _fits_on_device(self) -> bool:
        return self._device.type == "cuda" and self._images_NHWC.nbytes <= RESIDENT_LIMIT_BYTES

    def _on_device(self) -> torch.Tensor:
        resident = torch.empty(self._images_NHWC.shape, dtype=torch.uint8, device=self._device)
        for start in range(0, len(resident), _COPY_IMAGES):
            piece = np.array(self._images_NHWC[start : start + _COPY_IMAGES])
            resident[start : start + _COPY_IMAGES].copy_(torch.from_numpy(piece))
        return resident
