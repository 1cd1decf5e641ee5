"""Batches as a function of the step: which samples, which mirrored, which without their label; on the device."""

import numpy as np
import numpy.typing as npt
import torch

from region_workers.data.labels import check_labels
from region_workers.data.samples import DrawingSamples, Numbers, Samples
from schemas.digest import seed_from
from schemas.errors import plan_error

RESIDENT_LIMIT_BYTES = 2 << 30
_COPY_BYTES = 16 << 20
_BIN_POINTS = 16  # lengths that differ by less count as one


class _Epochs:
    """Which samples make up batch k of a stream of epochs, each a permutation of them: a function of (seed, k).

    An epoch has N // batch_size batches; the samples of its incomplete tail wait for the next permutation.
    """

    def __init__(self, count: int, device: torch.device, batch_size: int, seed: int, what: str) -> None:
        if batch_size > count:
            remedy = f"Lower training.batch_size or add {what}."
            raise plan_error("training.batch_size", batch_size, f"at most the {count} {what} of the data", remedy)
        self.batch_size = batch_size
        self.steps_per_epoch = count // batch_size
        self._count, self._device, self._seed = count, device, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def indices(self, step: int) -> Numbers:
        """The samples of the global batch of `step`: int64 [batch_size]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, self._permute(epoch)
        return self._permutation[position * self.batch_size : (position + 1) * self.batch_size].copy()

    def _permute(self, epoch: int) -> Numbers:
        permutation = self._generator("epoch", epoch).permutation(self._count)
        return permutation.astype(np.int64, copy=False)

    def _generator(self, name: str, index: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(seed_from(self._seed, name, index=index)))

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cuda":
            return tensor.to(self._device)
        # From pinned memory the copy runs beside the computation; from pageable memory it would wait for it.
        return tensor.pin_memory().to(self._device, non_blocking=True)


class DrawingBatches(_Epochs):
    """Serves batch k of a stream of epochs as a pure function of (seed, k); drawings of like length share a batch.

    Raises PlanError if a batch is larger than the store.
    """

    def __init__(self, samples: DrawingSamples, device: torch.device, batch_size: int, seed: int) -> None:
        super().__init__(len(samples), device, batch_size, seed, "drawings")
        self._samples = samples

    def batch(self, step: int, rows: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of the global batch of `step`: float32 [rows, L, 3] on the device, their lengths int64 on the CPU.

        L is the longest of the global batch, whatever the rows; behind a drawing's end there are zeros.
        """
        numbers = self.indices(step)
        lengths = self._samples.lengths[numbers]
        clean_BL3 = self._samples.read(numbers[rows], int(lengths.max()))
        return self._to_device(torch.from_numpy(clean_BL3)), torch.from_numpy(lengths[rows])

    def _permute(self, epoch: int) -> Numbers:
        used = super()._permute(epoch)[: self.steps_per_epoch * self.batch_size]
        by_length = used[np.argsort(self._samples.lengths[used] // _BIN_POINTS, kind="stable")]
        batches = by_length.reshape(self.steps_per_epoch, self.batch_size)
        return batches[self._generator("batches", epoch).permutation(self.steps_per_epoch)].ravel()


class BatchSource(_Epochs):
    """Serves batch k of a stream of epochs, each a permutation of the store, as a pure function of (seed, k).

    With `num_classes` the batches have labels, of which a share of `label_dropout` becomes `num_classes`, the null
    class. Raises PlanError if a batch is larger than the store, or if a label is not in [0, num_classes).
    """

    def __init__(
        self,
        samples: Samples,
        device: torch.device,
        batch_size: int,
        random_flip: bool,
        seed: int,
        num_classes: int | None = None,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__(len(samples), device, batch_size, seed, "images")
        check_labels(samples.labels, num_classes)
        self._random_flip = random_flip
        self._num_classes, self._label_dropout = num_classes, label_dropout
        self._labels = None if num_classes is None else samples.labels
        self._samples = samples
        fits = device.type == "cuda" and samples.rows.nbytes <= RESIDENT_LIMIT_BYTES
        self._resident = self._on_device() if fits else None

    def flips(self, step: int) -> npt.NDArray[np.bool_]:
        """Which samples of the global batch of `step` are mirrored: bool [batch_size]."""
        if not self._random_flip:
            return np.zeros(self.batch_size, dtype=np.bool_)
        return self._uniform("flip", step) < 0.5

    def dropped(self, step: int) -> npt.NDArray[np.bool_]:
        """Which samples of the global batch of `step` go without their label: bool [batch_size]."""
        return self._uniform("label-drop", step) < self._label_dropout

    def batch(self, step: int, rows: slice = slice(None)) -> torch.Tensor:
        """The rows of the global batch of `step` as float32 [rows, C, H, W] on the device; pixels are in [-1, 1]."""
        mirrored = self.flips(step)[rows]
        stored = self._gather(self._samples.row_numbers(self.indices(step)[rows], mirrored))
        return self._samples.finish(stored, self._to_device(torch.from_numpy(mirrored)) if self._random_flip else None)

    def labels(self, step: int, rows: slice = slice(None)) -> torch.Tensor | None:
        """The labels of `batch(step, rows)` as int64 [rows] on the device, dropped ones `num_classes`; None without."""
        if self._labels is None or self._num_classes is None:
            return None
        labels = self._labels[self.indices(step)]
        labels[self.dropped(step)] = self._num_classes
        return self._to_device(torch.from_numpy(labels[rows]))

    def _uniform(self, name: str, step: int) -> npt.NDArray[np.float64]:
        return self._generator(name, step).random(self.batch_size)

    def _gather(self, numbers: Numbers) -> torch.Tensor:
        if self._resident is not None:
            return self._resident.index_select(0, self._to_device(torch.from_numpy(numbers)))
        return self._to_device(torch.from_numpy(self._samples.read(numbers)))

    def _on_device(self) -> torch.Tensor:
        rows = self._samples.rows
        dtype = torch.from_numpy(np.empty(0, rows.dtype)).dtype
        resident = torch.empty(rows.shape, dtype=dtype, device=self._device)
        at_once = max(1, _COPY_BYTES // rows[:1].nbytes)
        for start in range(0, len(rows), at_once):
            stop = min(start + at_once, len(rows))
            resident[start:stop].copy_(torch.from_numpy(self._samples.read(np.arange(start, stop))))
        return resident
