"""Decode many images on all usable cores, in order, with memory that stays flat."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue

from region_workers.data.decode import Item, Label, Transform
from region_workers.data.decode_process import Decoded, DecodeProcess, Pixels, decode_here

# A task is handed over when it holds this many images or this many bytes, as files or as pixels, so that neither the
# cost of a hand-over nor the size of the largest images decides the speed or the memory.
_TASK_IMAGES = 128
_TASK_BYTES = 4 << 20
_TASKS_IN_FLIGHT_PER_PROCESS = 3
_ALONE_S = 0.2  # a small data set is decoded before other processes would have started


@dataclass(frozen=True)
class DecodedItems:
    """Some successive images: pixels [n, H, W, C], names and labels of the readable ones; the others' names and why."""

    pixels: Pixels
    names: list[str]
    labels: list[Label]
    unreadable: list[tuple[str, str]]


def decode_all(items: Iterator[Item], transform: Transform) -> Generator[DecodedItems, None, None]:
    """The images in order, a task at a time, decoded by as many processes as this one may use cores.

    Raises ChildProcessError if one of them dies.
    """
    tasks = _tasks(items, transform)
    alone_until = time.monotonic() + _ALONE_S
    for task in tasks:
        if time.monotonic() >= alone_until:
            yield from _decode_in_processes(itertools.chain([task], tasks), transform)
        else:
            yield _described(task, decode_here([item.payload for item in task], transform))


def _tasks(items: Iterator[Item], transform: Transform) -> Iterator[list[Item]]:
    most = _most_images(transform)
    task: list[Item] = []
    size_bytes = 0
    for item in items:
        task.append(item)
        size_bytes += len(item.payload) if isinstance(item.payload, bytes) else 0
        if len(task) == most or size_bytes >= _TASK_BYTES:
            yield task
            task, size_bytes = [], 0
    if task:
        yield task


def _most_images(transform: Transform) -> int:
    return max(1, min(_TASK_IMAGES, _TASK_BYTES // transform.image_bytes))


def _decode_in_processes(tasks: Iterator[list[Item]], transform: Transform) -> Iterator[DecodedItems]:
    count = len(os.sched_getaffinity(0))
    idle: SimpleQueue[DecodeProcess] = SimpleQueue()
    in_flight: deque[Future[DecodedItems]] = deque()
    with ExitStack() as stack:
        for _ in range(count):
            idle.put(stack.enter_context(DecodeProcess(transform, _most_images(transform))))
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
    readable = [item for position, item in enumerate(task) if position not in decoded.unreadable]
    return DecodedItems(
        pixels=decoded.pixels,
        names=[item.name for item in readable],
        labels=[item.label for item in readable],
        unreadable=[(task[position].name, reason) for position, reason in decoded.unreadable.items()],
    )
