"""A checksum of each row of a store: a row that is not what was written is never used."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from region_workers.data.rows import ReadRows, Rows
from region_workers.storage.durable import write_file
from region_workers.storage.integrity import file_digest
from schemas.errors import RunFailed

CHECKSUMS = "checksums.npy"

Checksums = npt.NDArray[np.uint32]


def checksums_of(rows: Rows) -> Checksums:
    """CRC-32 of each row, uint32 [N]; a row lies in one piece."""
    return np.fromiter((zlib.crc32(row.data) for row in rows), np.uint32, len(rows))


def checked(read: ReadRows, checksums: Checksums, folder: Path) -> ReadRows:
    """`read`, which raises RunFailed for a row of the store in `folder` that is not what its checksum is of."""

    def read_checked(numbers: npt.NDArray[np.int64]) -> Rows:
        rows = read(numbers)
        wrong = checksums_of(rows) != checksums[numbers]
        if wrong.any():
            raise RunFailed(
                f"{folder}: row {numbers[wrong][0]} is not what was written. Delete the folder and launch again: it is "
                "built anew, and training goes on from its last checkpoints."
            )
        return rows

    return read_checked


def write_array(path: Path, values: npt.NDArray[Any]) -> str:
    """Write a small array of a store durably as .npy; its SHA-256 (hex)."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, numpy would append .npy
            np.save(file, values, allow_pickle=False)

    write_file(path, write)
    return file_digest(path)


def read_array(path: Path, dtype: type[Any], count: int, sha256: str | None) -> npt.NDArray[Any]:
    """What `write_array` wrote: `dtype` [count]. Raises OSError or ValueError if it is missing or anything else."""
    if file_digest(path) != sha256:
        raise ValueError(f"{path.name} is not what was written")
    values: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    if values.shape != (count,) or values.dtype != dtype:
        raise ValueError(f"{path.name} holds {values.dtype} {values.shape}, not {np.dtype(dtype)} ({count},)")
    return values


def map_array(path: Path, size_bytes: int, record: str) -> np.memmap[Any, Any]:
    """The large array of a store, mapped. ValueError if the file's size is not that which the file `record` says."""
    found_bytes = path.stat().st_size
    if found_bytes != size_bytes:
        raise ValueError(f"{path.name} has {found_bytes} bytes, not the {size_bytes} of {record}")
    values: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return values


@contextmanager
def opening(folder: Path, kind: str, record: str) -> Iterator[None]:
    """Within it, what is missing or wrong in the store at `folder` is told as a RunFailed."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = f"{record} is not what was written" if isinstance(error, ValidationError) else error
        raise RunFailed(f"{folder} is no whole {kind}: {reason}. Delete it; it is built anew.") from error
