"""The content of a store in the making: pixels in order in their file, labels, and the names of what is unreadable."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np

from region_workers.data.checksums import Checksums, checksums_of
from region_workers.data.decode import Transform
from region_workers.data.decode_process import Pixels
from region_workers.data.labels import LabelRecorder
from region_workers.data.parallel import DecodedItems
from region_workers.data.parts import Part

_READ_BYTES = 16 << 20


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
