"""What of a store in the making is safely on disk, part by part: where a build goes on after it was killed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

from pydantic import ValidationError

from region_workers.storage.durable import write_model
from schemas.section import Sealed

_PART_BYTES, _PART_S = 64 << 20, 10.0
_MOST_BYTES = 512 << 20  # by so much decoding may be ahead of the disk


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
