"""Decode a source into a store's file of samples, in parts from the last of which a killed build goes on."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from region_workers.data.decode import Transform
from region_workers.data.labels import LabelRecorder, Labels
from region_workers.data.parallel import DecodedItems, decode_all
from region_workers.data.samples import Checksums, checksums_of, npy_header
from region_workers.data.sources import Source
from region_workers.storage.durable import write_model
from region_workers.storage.integrity import read_if_whole
from region_workers.storage.locks import Report
from schemas.errors import PlanError, plan_error
from schemas.plan import DataPlan
from schemas.section import Sealed

PARTS = "parts"
_PART_BYTES, _PART_S = 64 << 20, 10.0
_MOST_BYTES = 512 << 20  # by so much decoding may be ahead of the disk
_NAMES_SHOWN = 5
_log = logging.getLogger(__name__)


def decode_into(path: Path, source: Source, plan: DataPlan, key: str, report: Report) -> Content:
    """Fill the .npy file with the pixels of every readable image, in order; what else there is to know of them.

    Goes on from the parts that a killed build of the same store `key` left in the file's folder. Raises PlanError if
    there are no images, if one has no proper label or if more than the plan's share of them is unreadable.
    """
    transform, total = Transform.of(plan), source.count()
    recorder = LabelRecorder(plan.label_column, source.class_names()) if plan.label_column is not None else None
    with path.open("r+b" if path.exists() else "w+b") as file, PartLog(path.parent / PARTS, key, file) as log:
        content = Content(file, transform, recorder)
        for part in log.read():
            if not content.restore(part):
                break
            report(content.done, total or 0)
        if content.done:
            _log.info("%d images are decoded already", content.done)
        content.cut()
        log.drop_rest()
        left = None if total is None else total - content.done
        with closing(decode_all(source.items(content.done), transform, left)) as decoded_items:
            for decoded in decoded_items:
                content.append(decoded)
                if total is not None:
                    check_unreadable(content.unreadable, content.done, total, plan)
                if log.is_due():
                    log.write(content.next_part(key))
                report(content.done, total or 0)
        content.finish()
    if not content.done:
        raise plan_error("data.path", plan.path, "at least one image", "The data set is empty: choose another.")
    check_unreadable(content.unreadable, content.done, content.done, plan)
    return content


def check_unreadable(unreadable: Sequence[tuple[str, str] | str], done: int, total: int, plan: DataPlan) -> None:
    """Raise PlanError, naming the first of the unreadable, if they are more than the plan's share of `total`.

    They are given as names, or as names with reasons.
    """
    if len(unreadable) <= plan.max_unreadable * total:
        return
    first = unreadable[:_NAMES_SHOWN]
    names = "; ".join(image if isinstance(image, str) else f"{image[0]} ({image[1]})" for image in first)
    more = f"; and {len(unreadable) - _NAMES_SHOWN} more" if len(unreadable) > _NAMES_SHOWN else ""
    raise PlanError(
        f"data.max_unreadable = {plan.max_unreadable}: expected at most this share of the {total} {plan.kind} "
        f"in {plan.path} to be unreadable, but {len(unreadable)} of the {done} {plan.kind} read so far are: "
        f"{names}{more}. Repair or remove them, or raise data.max_unreadable."
    )


class Content:
    """What was decoded so far: the pixels in `file`, and the names, with reasons, of the `unreadable`."""

    def __init__(self, file: BinaryIO, transform: Transform, recorder: LabelRecorder | None) -> None:
        self._file, self._recorder, self._transform = file, recorder, transform
        self._pixels_start = len(self._header(0))
        self.images, self.sha = 0, hashlib.sha256()
        self.unreadable: list[tuple[str, str]] = []
        self._checksums: list[Checksums] = []
        self._labels_of_part: list[int | str] = []
        self._unreadable_in_parts = 0

    @property
    def done(self) -> int:
        """Images of the source so far, readable or not."""
        return self.images + len(self.unreadable)

    def shape(self) -> tuple[int, int, int, int]:
        """Of the pixels: images, height, width, channels."""
        return (self.images, *self._transform.shape)

    def checksums(self) -> Checksums:
        """Of each image so far: uint32 [images]."""
        return np.concatenate([np.empty(0, np.uint32), *self._checksums])

    def labels(self) -> tuple[Labels | None, int | None, tuple[str, ...] | None]:
        """As of `LabelRecorder.finish`; None if none are asked for."""
        return (None, None, None) if self._recorder is None else self._recorder.finish()

    def append(self, decoded: DecodedItems) -> None:
        """Add what was decoded next."""
        self._file.write(decoded.pixels.data)
        self.sha.update(decoded.pixels.data)
        self._checksums.append(checksums_of(decoded.pixels))
        self.images += len(decoded.pixels)
        self.unreadable += decoded.unreadable
        if self._recorder is not None:
            self._labels_of_part += [self._recorder.add(item.name, item.label) for item in decoded.readable]

    def next_part(self, key: str) -> Part:
        """What was added since the last part; from here on the next one counts."""
        unreadable, labels = self.unreadable[self._unreadable_in_parts :], self._labels_of_part
        self._unreadable_in_parts, self._labels_of_part = len(self.unreadable), []
        digest = self.sha.hexdigest()
        return Part(key=key, images=self.images, digest=digest, unreadable=tuple(unreadable), labels=tuple(labels))

    def restore(self, part: Part) -> bool:
        """Take a part of an earlier build for decoded, if the file holds its pixels; whether it does."""
        self._file.seek(self._position(self.images))
        data = np.fromfile(self._file, np.uint8, (part.images - self.images) * self._transform.image_bytes)
        sha = self.sha.copy()
        sha.update(data.data)
        if sha.hexdigest() != part.digest:
            return False
        self.sha, self.images = sha, part.images
        self._checksums.append(checksums_of(data.reshape(-1, *self._transform.shape)))
        self.unreadable += part.unreadable
        self._unreadable_in_parts = len(self.unreadable)
        if self._recorder is not None:
            for label in part.labels:
                self._recorder.add("", label)
        return True

    def cut(self) -> None:
        """Drop what stands in the file behind the restored parts; from here on it is written."""
        self._file.truncate(self._position(self.images))
        self._file.seek(0)
        self._file.write(self._header(0))
        self._file.seek(0, os.SEEK_END)

    def finish(self) -> None:
        """Note the number of images, which only now is known, and make the file safe."""
        self._file.seek(0)
        self._file.write(self._header(self.images))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _position(self, image: int) -> int:
        return self._pixels_start + image * self._transform.image_bytes

    def _header(self, images: int) -> bytes:
        return npy_header("|u1", (images, *self._transform.shape))


class Part(Sealed):
    """Where the pixels stood when they were last made safe; names and labels are those since the part before."""

    key: str
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
        while (part := read_if_whole(Part, self._path(self._count))) is not None and part.key == self._key:
            yield part
            self._count += 1

    def drop_rest(self) -> None:
        """Delete the parts that were not taken: they would not follow on those that are written from here on."""
        for path in self._folder.glob("*.json"):
            if path.name >= self._path(self._count).name:
                path.unlink()

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

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05}.json"
