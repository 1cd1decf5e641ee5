"""Decode a source into the files of a store: pixels.npy, labels.npy if the plan asks for labels, and store.json."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from region_workers.data.labels import LabelRecorder, Labels, count_classes
from region_workers.data.lock import Report
from region_workers.data.parallel import Decoded, decode_all
from region_workers.data.sources import Source
from schemas.durable import write_model
from schemas.errors import RunFailed, plan_error
from schemas.plan import DataPlan
from schemas.store import StoreInfo

PIXELS = "pixels.npy"
LABELS = "labels.npy"
INFO = "store.json"

_NAMES_SHOWN = 5


def build_store(
    folder: Path, source: Source, plan: DataPlan, key: str, identity: dict[str, Any], report: Report
) -> None:
    """Fill `folder` with the pixels and labels of every readable image, in order, and with what they are.

    Raises PlanError if there are no images or if one has no proper label, RunFailed if more than the plan's share of
    them is unreadable or if the source changes meanwhile.
    """
    recorder = LabelRecorder(plan.label_column, source.class_names()) if plan.label_column is not None else None
    with (folder / PIXELS).open("w+b") as file:
        content = _write_pixels(file, source, plan, recorder, report)
    labels, class_names = recorder.finish() if recorder is not None else (None, None)
    if labels is not None:
        np.save(folder / LABELS, labels, allow_pickle=False)
    if source.identity() != identity:
        raise RunFailed(f"{plan.path} changed while it was read. Start again once its files are at rest.")
    info = StoreInfo(
        key=key,
        digest=content_digest(content.pixels_sha, content.shape, labels),
        shape=content.shape,
        pixels_bytes=(folder / PIXELS).stat().st_size,
        unreadable_names=tuple(content.unreadable_names),
        num_classes=None if labels is None else count_classes(labels, class_names),
        class_names=class_names,
        source=identity,
    )
    write_model(folder / INFO, info)


def content_digest(pixels_sha: hashlib._Hash, shape: tuple[int, ...], labels: Labels | None) -> str:
    """A store's digest, from the running SHA-256 of its pixels."""
    sha = pixels_sha.copy()
    sha.update(str(shape).encode())
    if labels is not None:
        sha.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return sha.hexdigest()


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


@dataclass
class _Content:
    """What was decoded so far."""

    shape: tuple[int, int, int, int]
    pixels_sha: hashlib._Hash = field(default_factory=hashlib.sha256)
    images: int = 0
    unreadable_names: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        return self.images + len(self.unreadable_names)

    def take(self, decoded: Decoded, file: BinaryIO, recorder: LabelRecorder | None) -> None:
        for image in decoded.images:
            self.pixels_sha.update(image.data)
            file.write(image.data)
        if recorder is not None:
            for name, label in zip(decoded.names, decoded.labels, strict=True):
                recorder.add(name, label)
        self.images += len(decoded.images)
        self.unreadable_names += [name for name, _ in decoded.unreadable]
        self.complaints += [f"{name} ({reason})" for name, reason in decoded.unreadable]


def _write_pixels(
    file: BinaryIO, source: Source, plan: DataPlan, recorder: LabelRecorder | None, report: Report
) -> _Content:
    """Write the .npy file and record the labels."""
    total = source.count()
    content = _Content(_shape(0, plan))
    header_bytes = _write_header(file, content.shape)
    for decoded in decode_all(source.items(), plan):
        content.take(decoded, file, recorder)
        if total is not None:
            check_unreadable(content.complaints, content.done, total, plan)
        report(content.done, total or 0)
    if not content.done:
        raise plan_error("data.path", plan.path, "at least one image", "The data set is empty: choose another.")
    check_unreadable(content.complaints, content.done, content.done, plan)
    # Only now is the number of readable images known; numpy's header leaves room for any.
    content.shape = _shape(content.images, plan)
    file.seek(0)
    assert _write_header(file, content.shape) == header_bytes
    return content


def _shape(images: int, plan: DataPlan) -> tuple[int, int, int, int]:
    return (images, plan.resolution, plan.resolution, plan.channels)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()
