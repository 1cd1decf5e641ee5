"""Samples as they lie in a store, and how rows of it become floats: the seam between pixels, latents and drawings."""

import io
import os
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from region_workers.data.labels import Labels
from schemas.errors import RunFailed

Array = npt.NDArray[Any]
Checksums = npt.NDArray[np.uint32]
Numbers = npt.NDArray[np.int64]


class Samples:
    """What batches are served from. `rows`: as they are stored, one for each sample or each way in which it may come.

    `labels`: int64 [N], from 0; None if the plan names no column of them.
    """

    def __init__(self, rows: Array, labels: Labels | None = None, checksums: Checksums | None = None) -> None:
        self.rows, self.labels, self._checksums = rows, labels, checksums
        self._reader = _FileReader(rows) if isinstance(rows, np.memmap) else rows.__getitem__

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, numbers: Numbers) -> Array:
        """A copy of the rows with these numbers, int64 [B]; RunFailed for one that its checksum is not of."""
        rows: Array = self._reader(numbers)
        self._check(rows, numbers)
        return rows

    def row_numbers(self, indices: Numbers, mirrored: npt.NDArray[np.bool_]) -> Numbers:
        """Where the samples `indices` are, mirrored or not: int64 [B]."""
        return indices

    def _check(self, rows: Array | Sequence[Array], numbers: Numbers) -> None:
        if self._checksums is None:
            return
        wrong = checksums_of(rows) != self._checksums[numbers]
        if wrong.any():
            assert isinstance(self.rows, np.memmap)
            raise RunFailed(
                f"{Path(str(self.rows.filename)).parent}: row {numbers[wrong][0]} is not what was written. Delete "
                "the folder and launch again: it is built anew, and training goes on from its last checkpoints."
            )

    def finish(self, rows: torch.Tensor, mirrored: torch.Tensor | None) -> torch.Tensor:
        """Rows on the device as float32 [B, C, H, W]; `mirrored` bool [B], None if no row of this stream ever is."""
        return rows.to(torch.float32)


class PixelSamples(Samples):
    """Images uint8 [N, H, W, C], served in [-1, 1]; mirrored on the device."""

    def finish(self, rows: torch.Tensor, mirrored: torch.Tensor | None) -> torch.Tensor:
        images_BHWC = rows
        if mirrored is not None:
            images_BHWC = torch.where(mirrored.view(-1, 1, 1, 1), images_BHWC.flip(2), images_BHWC)
        images_BCHW = images_BHWC.permute(0, 3, 1, 2).contiguous()
        return images_BCHW.to(torch.float32).div_(127.5).sub_(1.0)


class LatentSamples(Samples):
    """Latents float16 [V, N, C, h, w], served as they are; with V = 2 the second half is of the mirrored images.

    A mirrored image has other latents than its image's, mirrored.
    """

    def __init__(self, latents_VNCHW: Array, labels: Labels | None = None, checksums: Checksums | None = None) -> None:
        self._variants, self._count = latents_VNCHW.shape[:2]
        super().__init__(latents_VNCHW.reshape(-1, *latents_VNCHW.shape[2:]), labels, checksums)  # a view of the file

    def __len__(self) -> int:
        return int(self._count)

    def row_numbers(self, indices: Numbers, mirrored: npt.NDArray[np.bool_]) -> Numbers:
        assert self._variants == 2 or not mirrored.any()
        numbers: Numbers = indices + self._count * mirrored.astype(np.int64)
        return numbers


class DrawingSamples(Samples):
    """Drawings as rows float32 [P, 3], one behind the other: drawing i has the rows [offsets[i], offsets[i + 1]).

    `lengths`: the rows of each, int64 [N].
    """

    def __init__(self, rows_P3: Array, offsets: Numbers, checksums: Checksums | None = None) -> None:
        super().__init__(rows_P3, None, checksums)
        self._starts, self.lengths = offsets[:-1], np.diff(offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, numbers: Numbers, length: int | None = None) -> Array:
        """A copy of the drawings, float32 [B, L, 3], filled up with zeros to `length`, or to the longest of them."""
        longest = int(self.lengths[numbers].max(initial=0)) if length is None else length
        padded_BL3 = np.zeros((len(numbers), longest, 3), np.float32)
        drawings = [padded[: self.lengths[number]] for padded, number in zip(padded_BL3, numbers, strict=True)]
        for drawing, start in zip(drawings, self._starts[numbers].tolist(), strict=True):
            if isinstance(self._reader, _FileReader):
                self._reader.read_into(drawing, start)
            else:
                drawing[:] = self.rows[start : start + len(drawing)]
        self._check(drawings, numbers)
        return padded_BL3


class _FileReader:
    """Reads rows from a memory map's file, and not through the map.

    Through the map each row would bring its neighbourhood along, from the disk and into the process, until the whole
    file counted as the process's memory.
    """

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        assert array.flags.c_contiguous
        self._name = str(array.filename)
        self._descriptor = os.open(self._name, os.O_RDONLY)
        closing = weakref.finalize(self, os.close, self._descriptor)
        closing.atexit = False  # a training may still read while Python ends beneath it
        self._start, self._row_bytes = array.offset, array[:1].nbytes
        self._row_shape, self._dtype = array.shape[1:], array.dtype

    def __call__(self, numbers: Numbers) -> Array:
        rows = np.empty((len(numbers), *self._row_shape), self._dtype)
        for row, number in zip(rows, numbers.tolist(), strict=True):
            self.read_into(row, number)
        return rows

    def read_into(self, values: Array, number: int) -> None:
        """Fill an array, which lies in one piece, with what is in the file from the row `number` on."""
        if os.preadv(self._descriptor, [values.data], self._start + number * self._row_bytes) < values.nbytes:
            raise OSError(f"{self._name} ends before the end of its row {number}: it was cut short while in use")


def checksums_of(rows: Array | Sequence[Array]) -> Checksums:
    """CRC-32 of each row, uint32 [N]; a row lies in one piece."""
    return np.fromiter((zlib.crc32(row.data) for row in rows), np.uint32, len(rows))


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """How a .npy file of such an array begins; as long for any first dimension."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    return header.getvalue()
