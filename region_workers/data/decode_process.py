"""Decoding, here or in a process of its own."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from region_workers.data.decode import Payload, Transform, decode_files
from region_workers.data.decode_worker import read_head, write_request

Pixels = npt.NDArray[np.uint8]

_WORKER = "region_workers.data.decode_worker"


class Decoded(NamedTuple):
    """`pixels` uint8 [n, H, W, C] of the readable files; the others' positions and why."""

    pixels: Pixels
    unreadable: dict[int, str]


def decode_here(payloads: Sequence[Payload], transform: Transform) -> Decoded:
    """Each file decoded, in order."""
    room = np.empty((len(payloads), *transform.shape), dtype=np.uint8)
    unreadable = decode_files(payloads, transform, room.reshape(-1).data)
    return Decoded(room[: len(payloads) - len(unreadable)], unreadable)


class DecodeProcess:
    """A process that decodes; one request, of at most `most_files` files, at a time.

    A process and not a thread: of a small image's decoding a good part is Python. And not one of multiprocessing's:
    a spawned one would import the program's main module again, a forked one is unsafe beside torch.
    """

    def __init__(self, transform: Transform, most_files: int) -> None:
        descriptor = os.memfd_create("pixels")
        os.ftruncate(descriptor, most_files * transform.image_bytes)
        room = np.frombuffer(mmap.mmap(descriptor, 0), dtype=np.uint8)
        self._room_NHWC = room.reshape(-1, *transform.shape)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _WORKER, json.dumps(transform), str(descriptor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[descriptor],
            env={**os.environ, "PYTHONPATH": _import_path(), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # a Ctrl-C is for the program; this process ends with its input
        )
        os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def decode(self, payloads: Sequence[Payload]) -> Decoded:
        """`decode_here`, over there. Raises ChildProcessError if the process has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            write_request(self._process.stdin, payloads)
            unreadable = dict(read_head(self._process.stdout))
        except (BrokenPipeError, EOFError) as error:
            raise ChildProcessError(f"exit status {self._process.wait()}") from error
        return Decoded(self._room_NHWC[: len(payloads) - len(unreadable)].copy(), unreadable)


def _import_path() -> str:
    """Where this process finds its modules, so that the other finds the same ones."""
    return os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
