"""Clean samples as they lie in a store, and how rows of it become floats: the seam between pixels and latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from region_workers.data.labels import Labels
from region_workers.data.rows import ReadRows, row_reader

Check = Callable[[ReadRows], ReadRows]


def unchecked(read: ReadRows) -> ReadRows:
    """Of rows that lie in no file."""
    return read


class Samples(Protocol):
    """The rows of a store, memory-mapped: one for each sample, or for each way in which it may come."""

    @property
    def rows(self) -> npt.NDArray[Any]:
        """All rows as they are stored."""

    def row_numbers(self, indices: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Where the samples `indices` are, mirrored or not: int64 [B]."""

    def read(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """A copy of the rows with these numbers, int64 [B]."""

    def finish(self, rows: torch.Tensor, mirrored: torch.Tensor | None) -> torch.Tensor:
        """Rows on the device as float32 [B, C, H, W]; `mirrored` bool [B], None if no row of this stream ever is."""


class SampleStore(Protocol):
    """What a stream of batches is served from: images, or latents made of them."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the samples and their labels."""

    @property
    def labels(self) -> Labels | None:
        """int64 [N], or None if the plan names no column of labels."""

    def __len__(self) -> int:
        """The number of samples, N."""

    def samples(self) -> Samples:
        """The N samples."""


class PixelSamples:
    """Images uint8 [N, H, W, C], served in [-1, 1]; mirrored on the device."""

    def __init__(self, images_NHWC: npt.NDArray[np.uint8], check: Check = unchecked) -> None:
        self.rows: npt.NDArray[Any] = images_NHWC
        self.read = check(row_reader(self.rows))

    def row_numbers(self, indices: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return indices

    def finish(self, rows: torch.Tensor, mirrored: torch.Tensor | None) -> torch.Tensor:
        images_BHWC = rows
        if mirrored is not None:
            images_BHWC = torch.where(mirrored.view(-1, 1, 1, 1), images_BHWC.flip(2), images_BHWC)
        images_BCHW = images_BHWC.permute(0, 3, 1, 2).contiguous()
        return images_BCHW.to(torch.float32).div_(127.5).sub_(1.0)


class LatentSamples:
    """Latents float16 [V, N, C, h, w], served as they are; with V = 2 the second half is of the mirrored images.

    A mirrored image has other latents than its image's, mirrored.
    """

    def __init__(self, latents_VNCHW: npt.NDArray[np.float16], check: Check = unchecked) -> None:
        self._variants, self._count = int(latents_VNCHW.shape[0]), int(latents_VNCHW.shape[1])
        self.rows: npt.NDArray[Any] = latents_VNCHW.reshape(-1, *latents_VNCHW.shape[2:])  # a view of the file
        self.read = check(row_reader(self.rows))

    def row_numbers(self, indices: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        assert self._variants == 2 or not mirrored.any()
        return indices + self._count * mirrored.astype(np.int64)

    def finish(self, rows: torch.Tensor, mirrored: torch.Tensor | None) -> torch.Tensor:
        return rows.to(torch.float32)
