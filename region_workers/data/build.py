"""Decode a source into the two files of a store: pixels.npy and store.json."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from region_workers.data.decode import Payload, Pixels, UnreadableImageError, decode
from region_workers.data.lock import Report
from region_workers.data.sources import Source
from schemas.durable import write_model
from schemas.errors import RunFailed, plan_error
from schemas.plan import DataPlan
from schemas.store import StoreInfo

PIXELS = "pixels.npy"
INFO = "store.json"

# A task is handed to a thread when it holds this many images or this many bytes, so that neither the cost of a
# hand-over nor the size of the largest images decides the speed or the memory.
_TASK_IMAGES = 64
_TASK_BYTES = 4 << 20
_TASKS_IN_FLIGHT_PER_THREAD = 3
_NAMES_SHOWN = 5

Named = tuple[str, Payload]


@dataclass
class _Progress:
    done: int = 0
    written: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # name, reason


def build_store(
    folder: Path, source: Source, plan: DataPlan, key: str, identity: dict[str, Any], report: Report
) -> None:
    """Fill `folder` with the pixels of every readable image, in order, and with what they are.

    Raises PlanError if there are no images and RunFailed if more than the plan's share of them is unreadable.
    """
    total = source.count()
    progress = _Progress()
    sha = hashlib.sha256()
    with (folder / PIXELS).open("w+b") as file:
        header_bytes = _write_header(file, 0, plan)
        for images, unreadable in _decoded(source.images(), plan):
            for image in images:
                sha.update(image.data)
                file.write(image.data)
            progress.done += len(images) + len(unreadable)
            progress.written += len(images)
            progress.unreadable += unreadable
            if total is not None:
                _check_unreadable(progress.unreadable, total, plan)
            report(progress.done, total or 0)
        if not progress.done:
            raise plan_error("data.path", plan.path, "at least one image", "The data set is empty: choose another.")
        _check_unreadable(progress.unreadable, progress.done, plan)
        file.seek(0)
        assert _write_header(file, progress.written, plan) == header_bytes, "numpy leaves room for the number of rows"
    shape = (progress.written, plan.resolution, plan.resolution, plan.channels)
    sha.update(str(shape).encode())
    info = StoreInfo(
        key=key,
        digest=sha.hexdigest(),
        shape=shape,
        pixels_bytes=(folder / PIXELS).stat().st_size,
        unreadable_names=tuple(name for name, _ in progress.unreadable),
        source=identity,
    )
    write_model(folder / INFO, info)


def unreadable_error(names: list[str], total: int, plan: DataPlan) -> RunFailed:
    """The error that names the first unreadable images."""
    first = "; ".join(names[:_NAMES_SHOWN])
    more = f"; and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return RunFailed(
        f"{len(names)} of {total} images of {plan.path} are unreadable, above data.max_unreadable = "
        f"{plan.max_unreadable}: {first}{more}. Repair or remove them, or raise data.max_unreadable."
    )


def _check_unreadable(unreadable: list[tuple[str, str]], total: int, plan: DataPlan) -> None:
    if len(unreadable) > plan.max_unreadable * total:
        raise unreadable_error([f"{name} ({reason})" for name, reason in unreadable], total, plan)


def _write_header(file: BinaryIO, images: int, plan: DataPlan) -> int:
    shape = (images, plan.resolution, plan.resolution, plan.channels)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def _decoded(images: Iterator[Named], plan: DataPlan) -> Iterator[tuple[list[Pixels], list[tuple[str, str]]]]:
    """The source's images in order, a task at a time, decoded by as many threads as this process may use cores.

    Threads and not processes: Pillow decodes and resizes outside the interpreter's lock, a spawned process would
    import the program's main module again, and a forked one is unsafe beside torch.
    """
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[Future[tuple[list[Pixels], list[tuple[str, str]]]]] = deque()
        try:
            for task in _tasks(images):
                waiting.append(pool.submit(_decode_task, task, plan.resolution, plan.channels))
                if len(waiting) >= threads * _TASKS_IN_FLIGHT_PER_THREAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _tasks(images: Iterator[Named]) -> Iterator[list[Named]]:
    task: list[Named] = []
    size_bytes = 0
    for name, payload in images:
        task.append((name, payload))
        size_bytes += len(payload) if isinstance(payload, bytes) else 0
        if len(task) >= _TASK_IMAGES or size_bytes >= _TASK_BYTES:
            yield task
            task, size_bytes = [], 0
    if task:
        yield task


def _decode_task(task: list[Named], resolution: int, channels: int) -> tuple[list[Pixels], list[tuple[str, str]]]:
    images, unreadable = [], []
    for name, payload in task:
        try:
            images.append(np.ascontiguousarray(decode(payload, resolution, channels)))
        except UnreadableImageError as error:
            unreadable.append((name, str(error)))
    return images, unreadable
