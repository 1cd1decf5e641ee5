"""Decode many images on all usable cores, in order, with memory that stays flat."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from region_workers.data.decode import PIPE_BYTES, Item, Payload, Transform, decode_files, read_line, write_line

# A task is handed over when it holds this many images or this many bytes, as files or as pixels, so that neither the
# cost of a hand-over nor the size of the largest images decides the speed or the memory.
_TASK_IMAGES = 128
_TASK_BYTES = 4 << 20
_TASKS_IN_FLIGHT_PER_PROCESS = 3
_ALONE_S = 0.2  # a small data set is decoded before other processes would have started

Pixels = npt.NDArray[np.uint8]
Decoded = tuple[Pixels, dict[int, str]]  # [n, H, W, C] of the readable files; the others' positions and why


class DecodedItems(NamedTuple):
    """Some successive images: pixels [n, H, W, C] of the readable ones, and these; the others' names and why."""

    pixels: Pixels
    readable: list[Item]
    unreadable: list[tuple[str, str]]


def decode_all(
    items: Iterator[Item], transform: Transform, count: int | None = None
) -> Generator[DecodedItems, None, None]:
    """The images in order, a task at a time, decoded by as many processes as this one may use cores.

    `count`: how many they are, if that is known. Raises ChildProcessError if a process dies.
    """
    most_images = max(1, min(_TASK_IMAGES, _TASK_BYTES // transform.image_bytes))
    tasks = _tasks(items, most_images)
    began, rest_s, left = time.monotonic(), 0.0, count or 0
    for number, task in enumerate(tasks):
        if time.monotonic() - began + rest_s >= _ALONE_S:
            yield from _decode_in_processes(itertools.chain([task], tasks), transform, most_images)
            return
        task_began = time.monotonic()
        decoded = decode_here([item.payload for item in task], transform)
        left -= len(task)
        if number > 0:  # the first one imports what reads images, and says nothing of the others
            rest_s = max(0, left) * (time.monotonic() - task_began) / len(task)
        yield _described(task, decoded)


def _tasks(items: Iterator[Item], most_images: int) -> Iterator[list[Item]]:
    task: list[Item] = []
    size_bytes = 0
    for item in items:
        task.append(item)
        size_bytes += len(item.payload) if isinstance(item.payload, bytes) else 0
        if len(task) == most_images or size_bytes >= _TASK_BYTES:
            yield task
            task, size_bytes = [], 0
    if task:
        yield task


def _decode_in_processes(tasks: Iterator[list[Item]], transform: Transform, most_images: int) -> Iterator[DecodedItems]:
    count = len(os.sched_getaffinity(0))
    idle: SimpleQueue[DecodeProcess] = SimpleQueue()
    in_flight: deque[Future[DecodedItems]] = deque()
    with ExitStack() as stack:
        for _ in range(count):
            idle.put(stack.enter_context(DecodeProcess(transform, most_images)))
        pool = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="decode"))
        try:
            for task in tasks:
                in_flight.append(pool.submit(_decode_task, task, idle))
                if len(in_flight) >= count * _TASKS_IN_FLIGHT_PER_PROCESS:
                    yield in_flight.popleft().result()
            while in_flight:
                yield in_flight.popleft().result()
        finally:
            for future in in_flight:
                future.cancel()


def _decode_task(task: list[Item], idle: SimpleQueue[DecodeProcess]) -> DecodedItems:
    process = idle.get()
    try:
        return _described(task, process.decode([item.payload for item in task]))
    except ChildProcessError as error:
        raise ChildProcessError(
            f"a process died ({error}) while it decoded the images {task[0].name} to {task[-1].name}. If it was killed "
            "(-9), memory may have run out. Launch again: what is decoded is kept"
        ) from error
    finally:
        idle.put(process)


def _described(task: list[Item], decoded: Decoded) -> DecodedItems:
    pixels, unreadable = decoded
    readable = [item for position, item in enumerate(task) if position not in unreadable] if unreadable else task
    reasons = [(task[position].name, reason) for position, reason in unreadable.items()]
    return DecodedItems(pixels, readable, reasons)


def decode_here(payloads: Sequence[Payload], transform: Transform) -> Decoded:
    """Each file decoded, in order."""
    room = np.empty((len(payloads), *transform.shape), dtype=np.uint8)
    unreadable = decode_files(payloads, transform, room.reshape(-1).data)
    return room[: len(payloads) - len(unreadable)], unreadable


class DecodeProcess:
    """A process that decodes; one request, of at most `most_files` files, at a time.

    A process and not a thread: of a small image's decoding a good part is Python. And not one of multiprocessing's:
    a spawned one would import the program's main module again (and fail in a script that has no main guard), a forked
    one is unsafe beside torch. A pool of the standard library took 1.7 times as long for 20,000 images of 32 x 32.
    """

    def __init__(self, transform: Transform, most_files: int) -> None:
        descriptor = os.memfd_create("pixels")
        os.ftruncate(descriptor, most_files * transform.image_bytes)
        room = np.frombuffer(mmap.mmap(descriptor, 0), dtype=np.uint8)
        self._room_NHWC = room.reshape(-1, *transform.shape)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", decode_files.__module__, json.dumps(transform), str(descriptor)],
            bufsize=PIPE_BYTES,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[descriptor],
            env={**os.environ, "PYTHONPATH": import_path(), "OPENBLAS_NUM_THREADS": "1"},
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
            files = [len(payload) if isinstance(payload, bytes) else payload for payload in payloads]
            write_line(self._process.stdin, files, [payload for payload in payloads if isinstance(payload, bytes)])
            unreadable = dict(read_line(self._process.stdout))
        except (BrokenPipeError, EOFError) as error:
            raise ChildProcessError(f"exit status {self._process.wait()}") from error
        return self._room_NHWC[: len(payloads) - len(unreadable)].copy(), unreadable


def import_path() -> str:
    """Where this process finds its modules, so that the other finds the same ones."""
    return os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
