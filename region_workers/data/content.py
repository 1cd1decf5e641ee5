"""What a build has made of a store so far, and the log of finished parts from which a killed build goes on."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from pydantic import ValidationError

from region_workers.data.checksums import Checksums, checksums_of
from region_workers.data.decode import Transform
from region_workers.data.labels import LabelRecorder
from region_workers.data.parallel import DecodedItems, Pixels
from region_workers.storage.durable import write_model
from schemas.section import Sealed

_READ_BYTES = 16 << 20
_PART_BYTES, _PART_S = 64 << 20, 10.0
_MOST_BYTES = 512 << 20  # by so much decoding may be ahead of the disk


class Content:
    """What was decoded so far. `file` is the store's .npy file, open for reading and writing."""

    def __init__(self, file: BinaryIO, transform: Transform, recorder: LabelRecorder | None) -> None:
        self._file, self._recorder = file, recorder
        self._image_shape = transform.shape
        self._image_bytes = transform.image_bytes
        self._pixels_start = _write_header(file, self.shape(0))
        self.pixels_sha = hashlib.sha256()
        self.images = 0
        self.unreadable_names: list[str] = []
        self.complaints: list[str] = []  # the same, with the reasons
        self._checksums: list[Checksums] = []
        self._new_unreadable: list[tuple[str, str]] = []  # since the last part, as the labels below
        self._new_labels: list[int | str] = []

    @property
    def done(self) -> int:
        """Images of the source so far, readable or not."""
        return self.images + len(self.unreadable_names)

    def shape(self, images: int | None = None) -> tuple[int, int, int, int]:
        """Of the pixels: images, height, width, channels."""
        return (self.images if images is None else images, *self._image_shape)

    def take(self, decoded: DecodedItems) -> None:
        """Append what was decoded next."""
        self.pixels_sha.update(decoded.pixels.data)
        self._checksums.append(checksums_of(decoded.pixels))
        self._file.write(decoded.pixels.data)
        self.images += len(decoded.pixels)
        self._note_unreadable(decoded.unreadable)
        self._new_unreadable += decoded.unreadable
        if self._recorder is not None:
            for name, label in zip(decoded.names, decoded.labels, strict=True):
                self._new_labels.append(self._recorder.add(name, label))

    def next_part(self, key: str) -> Part:
        """What was taken since the last part; from here on the next one counts."""
        part = Part(
            key=key,
            done=self.done,
            images=self.images,
            digest=self.pixels_sha.hexdigest(),
            unreadable=tuple(self._new_unreadable),
            labels=tuple(self._new_labels),
        )
        self._new_unreadable, self._new_labels = [], []
        return part

    def restore(self, part: Part) -> bool:
        """Take a part of an earlier build for decoded, if the file holds its pixels; whether it does."""
        sha, checksums = self.pixels_sha.copy(), []
        self._file.seek(self._position(self.images))
        for pixels in self._pixels_in_file(part.images - self.images):
            sha.update(pixels.data)
            checksums.append(checksums_of(pixels))
        if sha.hexdigest() != part.digest:
            return False
        self.pixels_sha, self.images = sha, part.images
        self._checksums += checksums
        self._note_unreadable(part.unreadable)
        if self._recorder is not None:
            for label in part.labels:
                self._recorder.add("", label)
        return True

    def _pixels_in_file(self, images: int) -> Iterator[Pixels]:
        """The next images in the file, as many as there are of them, some at a time."""
        at_once = max(1, _READ_BYTES // self._image_bytes)
        for first in range(0, images, at_once):
            data = self._file.read(min(at_once, images - first) * self._image_bytes)
            whole = len(data) // self._image_bytes
            yield np.frombuffer(data, np.uint8, whole * self._image_bytes).reshape(whole, *self._image_shape)

    def checksums(self) -> Checksums:
        """Of each image so far: uint32 [images]."""
        return np.concatenate([np.empty(0, np.uint32), *self._checksums])

    def cut(self) -> None:
        """Drop what stands in the file behind the restored parts; from here on it is written."""
        self._file.seek(self._position(self.images))
        self._file.truncate()

    def finish(self) -> None:
        """Note the number of images, which only now is known, and make the file safe."""
        self._file.seek(0)
        assert _write_header(self._file, self.shape()) == self._pixels_start  # numpy leaves room for any number
        self._file.flush()
        os.fsync(self._file.fileno())

    def _note_unreadable(self, unreadable: Iterable[tuple[str, str]]) -> None:
        for name, reason in unreadable:
            self.unreadable_names.append(name)
            self.complaints.append(f"{name} ({reason})")

    def _position(self, image: int) -> int:
        return self._pixels_start + image * self._image_bytes


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


class Part(Sealed):
    """Where the pixels stood when they were last made safe; names and labels are those since the part before."""

    key: str
    done: int  # images of the source so far, readable or not
    images: int  # the readable ones: rows of pixels
    digest: str  # SHA-256 of those rows
    unreadable: tuple[tuple[str, str], ...]  # name and reason
    labels: tuple[int | str, ...]  # as the source gives them; empty if the plan asks for none


class PartLog:
    """The parts in `folder` of the store `key`, whose pixels go to `file`.

    The pixels of a part are written to the disk in the background, then its record: decoding does not wait for them.
    """

    def __init__(self, folder: Path, key: str, file: BinaryIO) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._key, self._file = folder, key, file
        self._count = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="parts")
        self._writing: Future[None] | None = None
        self._last_s, self._last_byte = time.monotonic(), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None and self._writing is not None:
            self._writing.result()

    def read(self) -> Iterator[Part]:
        """The parts in order, up to the first that is missing. The one at which the reader breaks off is replaced."""
        while (part := self._read(self._count)) is not None:
            yield part
            self._count += 1

    def is_due(self) -> bool:
        """Whether another part is worth its record by now, and the one before it is written; a slow disk is waited for.

        Raises OSError if the disk did not take a part.
        """
        new_bytes = self._file.tell() - self._last_byte
        if self._writing is not None:
            if not self._writing.done() and new_bytes < _MOST_BYTES:
                return False
            self._writing.result()
        return new_bytes >= _PART_BYTES or time.monotonic() - self._last_s >= _PART_S

    def write(self, part: Part) -> None:
        """Make what was written to the file so far safe, then note it."""
        self._file.flush()
        self._last_s, self._last_byte = time.monotonic(), self._file.tell()
        self._writing = self._pool.submit(self._make_safe, self._path(self._count), part)
        self._count += 1

    def _make_safe(self, path: Path, part: Part) -> None:
        os.fsync(self._file.fileno())
        write_model(path, part)

    def _read(self, number: int) -> Part | None:
        try:
            part = Part.model_validate_json(self._path(number).read_bytes())
        except (FileNotFoundError, ValidationError):  # not there, or of another version
            return None
        return part if part.key == self._key else None

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05}.json"
