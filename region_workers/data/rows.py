"""Rows of an array by their numbers, out of memory or out of the array's file."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[Any]
ReadRows = Callable[[npt.NDArray[np.int64]], Rows]


def row_reader(array: Rows) -> ReadRows:
    """A function from row numbers, int64 [B], to a copy of these rows [B, ...]; from its file if it is a memory map."""
    return _FileRows(array) if isinstance(array, np.memmap) else array.__getitem__


class _FileRows:
    """Reads from the file and not through the map.

    Through the map each row would bring its neighbourhood along, from the disk and into the process, until the whole
    file counted as the process's memory.
    """

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        assert array.filename is not None
        assert array.flags.c_contiguous
        self._name = str(array.filename)
        self._descriptor = os.open(self._name, os.O_RDONLY)
        closing = weakref.finalize(self, os.close, self._descriptor)
        closing.atexit = False  # a training may still read while Python ends beneath it
        self._start, self._row_bytes = array.offset, array[:1].nbytes
        self._row_shape, self._dtype = array.shape[1:], array.dtype

    def __call__(self, numbers: npt.NDArray[np.int64]) -> Rows:
        rows = np.empty((len(numbers), *self._row_shape), self._dtype)
        for row, number in zip(rows, numbers.tolist(), strict=True):
            if os.preadv(self._descriptor, [row], self._start + number * self._row_bytes) < self._row_bytes:
                raise OSError(f"{self._name} ends before the end of its row {number}: it was cut short while in use")
        return rows
