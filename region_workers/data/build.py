"""Decode a source into the two files of a store: pixels.npy and store.json."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from region_workers.data.lock import Report
from region_workers.data.parallel import decode_all
from region_workers.data.sources import Source
from schemas.durable import write_model
from schemas.errors import RunFailed, plan_error
from schemas.plan import DataPlan
from schemas.store import StoreInfo

PIXELS = "pixels.npy"
INFO = "store.json"

_NAMES_SHOWN = 5


def build_store(
    folder: Path, source: Source, plan: DataPlan, key: str, identity: dict[str, Any], report: Report
) -> None:
    """Fill `folder` with the pixels of every readable image, in order, and with what they are.

    Raises PlanError if there are no images, RunFailed if more than the plan's share of them is unreadable or if the
    source changes meanwhile.
    """
    with (folder / PIXELS).open("w+b") as file:
        images, digest, unreadable_names = _write_pixels(file, source, plan, report)
    if source.identity() != identity:
        raise RunFailed(f"{plan.path} changed while it was read. Start again once its files are at rest.")
    info = StoreInfo(
        key=key,
        digest=digest,
        shape=_shape(images, plan),
        pixels_bytes=(folder / PIXELS).stat().st_size,
        unreadable_names=unreadable_names,
        source=identity,
    )
    write_model(folder / INFO, info)


def check_unreadable(unreadable: list[str], done: int, total: int, plan: DataPlan) -> None:
    """Raise RunFailed, naming the first unreadable images, if they are more than the plan's share of `total`."""
    if len(unreadable) <= plan.max_unreadable * total:
        return
    names = "; ".join(unreadable[:_NAMES_SHOWN])
    more = f"; and {len(unreadable) - _NAMES_SHOWN} more" if len(unreadable) > _NAMES_SHOWN else ""
    raise RunFailed(
        f"{len(unreadable)} of the {done} images read from {plan.path} are unreadable, more than data.max_unreadable = "
        f"{plan.max_unreadable} of {total}: {names}{more}. Repair or remove them, or raise data.max_unreadable."
    )


def _write_pixels(file: BinaryIO, source: Source, plan: DataPlan, report: Report) -> tuple[int, str, tuple[str, ...]]:
    """Write the .npy file; returns the number of images, the digest of their pixels and the names left out."""
    total = source.count()
    sha = hashlib.sha256()
    done, names, complaints = 0, [], []
    header_bytes = _write_header(file, _shape(0, plan))
    for decoded in decode_all(source.images(), plan.resolution, plan.channels):
        for image in decoded.images:
            sha.update(image.data)
            file.write(image.data)
        done += len(decoded)
        names += [name for name, _ in decoded.unreadable]
        complaints += [f"{name} ({reason})" for name, reason in decoded.unreadable]
        if total is not None:
            check_unreadable(complaints, done, total, plan)
        report(done, total or 0)
    if not done:
        raise plan_error("data.path", plan.path, "at least one image", "The data set is empty: choose another.")
    check_unreadable(complaints, done, done, plan)
    # Only now is the number of readable images known; numpy's header leaves room for any.
    shape = _shape(done - len(names), plan)
    file.seek(0)
    assert _write_header(file, shape) == header_bytes
    sha.update(str(shape).encode())
    return shape[0], sha.hexdigest(), tuple(names)


def _shape(images: int, plan: DataPlan) -> tuple[int, int, int, int]:
    return (images, plan.resolution, plan.resolution, plan.channels)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()
