"""Decode many images on all usable cores, in order, with memory that stays flat."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from region_workers.data.decode import Item, Label, Pixels, UnreadableImageError, decode
from schemas.plan import DataPlan

# A task is handed to a thread when it holds this many images or this many bytes, so that neither the cost of a
# hand-over nor the size of the largest images decides the speed or the memory.
_TASK_IMAGES = 64
_TASK_BYTES = 4 << 20
_TASKS_IN_FLIGHT_PER_THREAD = 3


@dataclass
class Decoded:
    """Some successive images: pixels, names and labels of the readable ones, the others' names with the reason."""

    images: list[Pixels] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images) + len(self.unreadable)


def decode_all(items: Iterator[Item], plan: DataPlan) -> Iterator[Decoded]:
    """The images in order, a task at a time, decoded by as many threads as this process may use cores.

    Threads and not processes: Pillow decodes and resizes outside the interpreter's lock, a spawned process would
    import the program's main module again, and a forked one is unsafe beside torch.
    """
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        in_flight: deque[Future[Decoded]] = deque()
        try:
            for task in _tasks(items):
                in_flight.append(pool.submit(_decode_task, task, plan))
                if len(in_flight) >= threads * _TASKS_IN_FLIGHT_PER_THREAD:
                    yield in_flight.popleft().result()
            while in_flight:
                yield in_flight.popleft().result()
        finally:
            for future in in_flight:
                future.cancel()


def _tasks(items: Iterator[Item]) -> Iterator[list[Item]]:
    task: list[Item] = []
    size_bytes = 0
    for item in items:
        task.append(item)
        size_bytes += len(item.payload) if isinstance(item.payload, bytes) else 0
        if len(task) >= _TASK_IMAGES or size_bytes >= _TASK_BYTES:
            yield task
            task, size_bytes = [], 0
    if task:
        yield task


def _decode_task(task: list[Item], plan: DataPlan) -> Decoded:
    decoded = Decoded()
    for item in task:
        try:
            pixels = decode(item.payload, plan.resolution, plan.channels, plan.crop, plan.interpolation)
        except UnreadableImageError as error:
            decoded.unreadable.append((item.name, str(error)))
        else:
            decoded.images.append(np.ascontiguousarray(pixels))
            decoded.names.append(item.name)
            decoded.labels.append(item.label)
    return decoded
