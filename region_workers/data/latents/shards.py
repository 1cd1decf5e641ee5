"""The file of latents while it fills: preallocated, written a shard at a time, each shard with a record of its own."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from region_workers.data.checksums import checksums_of
from region_workers.storage.durable import write_model
from schemas.store import ShardRecord

LATENTS = "latents.npy"
_RECORDS = "shards"
_READ_IMAGES = 64

Latents = npt.NDArray[np.float16]
LatentShape = tuple[int, int, int, int, int]  # variants, images, channels, height, width


def shard_spans(images: int, shard_images: int) -> list[tuple[int, int]]:
    """The images [start, stop) of each shard."""
    return [(start, min(start + shard_images, images)) for start in range(0, images, shard_images)]


class ShardFile:
    """The latents of a folder in the making. What is recorded survives a kill at any moment."""

    def __init__(self, folder: Path, key: str, shape: LatentShape, shard_images: int) -> None:
        self.spans = shard_spans(shape[1], shard_images)
        self._path, self._records = folder / LATENTS, folder / _RECORDS
        self._key, self._shape = key, shape
        self._header = _header(shape)
        self._image_bytes = 2 * int(np.prod(shape[2:]))
        self.checksums = np.zeros(shape[:2], np.uint32)  # of each image's latents, by variant
        self._prepare()

    def whole(self) -> dict[int, str]:
        """The shards that are there and whole, by number, with their digests; reads them all."""
        latents = np.memmap(self._path, "<f2", "r", len(self._header), self._shape)
        recorded = {number: self._recorded(number) for number in range(len(self.spans))}
        whole = {
            number: digest
            for number, digest in recorded.items()
            if digest is not None and shard_digest(latents, self.spans[number]) == digest
        }
        for start, stop in (self.spans[number] for number in whole):
            self._note_checksums(latents[:, start:stop], start)
        return whole

    def write(self, number: int, latents_VnChw: Latents) -> str:
        """Put a shard into its place, durably, then its record; returns its digest."""
        start, stop = self.spans[number]
        assert latents_VnChw.shape == (self._shape[0], stop - start, *self._shape[2:])
        assert latents_VnChw.dtype == np.float16
        with self._path.open("r+b") as file:  # not through a memory map: on a full disk that would kill the process
            for variant, part in enumerate(latents_VnChw):
                file.seek(self._offset(variant, start))
                file.write(np.ascontiguousarray(part, dtype="<f2").data)
            file.flush()
            os.fsync(file.fileno())
        self._note_checksums(latents_VnChw, start)
        digest = shard_digest(latents_VnChw, (0, stop - start))
        record = ShardRecord(key=self._key, start=start, stop=stop, digest=digest)
        write_model(self._record_path(number), record)
        return digest

    def _note_checksums(self, latents_VnChw: Latents, start: int) -> None:
        for variant, part in enumerate(latents_VnChw):
            self.checksums[variant, start : start + len(part)] = checksums_of(np.ascontiguousarray(part, dtype="<f2"))

    def _prepare(self) -> None:
        self._records.mkdir(parents=True, exist_ok=True)
        with self._path.open("r+b" if self._path.exists() else "w+b") as file:
            file.write(self._header)
            file.truncate(self._offset(self._shape[0], 0))

    def _recorded(self, number: int) -> str | None:
        path = self._record_path(number)
        if not path.is_file():
            return None
        try:
            record = ShardRecord.model_validate_json(path.read_bytes())
        except ValidationError:  # of another version: the shard is made anew
            return None
        return record.digest if (record.key, record.start, record.stop) == (self._key, *self.spans[number]) else None

    def _record_path(self, number: int) -> Path:
        return self._records / f"{number:05}.json"

    def _offset(self, variant: int, image: int) -> int:
        return len(self._header) + (variant * self._shape[1] + image) * self._image_bytes


def shard_digest(latents_VNChw: Latents, span: tuple[int, int]) -> str:
    """SHA-256 (hex) of the latents of the images [start, stop), one variant after the other; memory stays flat."""
    start, stop = span
    sha = hashlib.sha256()
    for variant in range(latents_VNChw.shape[0]):
        for first in range(start, stop, _READ_IMAGES):
            piece = latents_VNChw[variant, first : min(first + _READ_IMAGES, stop)]
            sha.update(np.ascontiguousarray(piece, dtype="<f2").data)
    return sha.hexdigest()


def _header(shape: LatentShape) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return header.getvalue()
