"""Decode a source into the files of a store: pixels.npy, their checksums, labels.npy if asked for, and store.json."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from region_workers.data.build_lock import Report
from region_workers.data.checksums import CHECKSUMS, write_array
from region_workers.data.content import Content, PartLog
from region_workers.data.decode import Transform
from region_workers.data.labels import LabelRecorder, Labels, count_classes
from region_workers.data.parallel import decode_all
from region_workers.data.sources import Source
from region_workers.storage.durable import write_model
from schemas.errors import PlanError, RunFailed, plan_error
from schemas.plan import DataPlan
from schemas.store import StoreInfo

PIXELS = "pixels.npy"
LABELS = "labels.npy"
INFO = "store.json"

_PARTS = "parts"
_NAMES_SHOWN = 5
_log = logging.getLogger(__name__)


def build_store(
    folder: Path, source: Source, plan: DataPlan, key: str, identity: dict[str, Any], report: Report
) -> None:
    """Fill `folder` with the pixels and labels of every readable image, in order, and with what they are.

    Goes on from the parts that a killed build left there. Raises PlanError if there are no images, if one has no
    proper label or if more than the plan's share of them is unreadable, RunFailed if the source changes meanwhile.
    """
    folder.mkdir(exist_ok=True)
    recorder = LabelRecorder(plan.label_column, source.class_names()) if plan.label_column is not None else None
    with _open(folder / PIXELS) as file, PartLog(folder / _PARTS, key, file) as log:
        content = Content(file, Transform.of(plan), recorder)
        total = source.count()
        _restore(content, log, total, report)
        _decode_rest(content, log, source, plan, key, total, report)
        content.finish()
    labels, class_names = recorder.finish() if recorder is not None else (None, None)
    checksums_sha256 = write_array(folder / CHECKSUMS, content.checksums())
    labels_sha256 = None if labels is None else write_array(folder / LABELS, labels)
    if source.identity() != identity:
        raise RunFailed(f"{plan.path} changed while it was read. Start again once its files are at rest.")
    info = StoreInfo(
        key=key,
        digest=content_digest(content.pixels_sha, content.shape(), labels),
        shape=content.shape(),
        pixels_bytes=(folder / PIXELS).stat().st_size,
        checksums_sha256=checksums_sha256,
        labels_sha256=labels_sha256,
        unreadable_names=tuple(content.unreadable_names),
        num_classes=None if labels is None else count_classes(labels, class_names),
        class_names=class_names,
        source=identity,
    )
    write_model(folder / INFO, info)
    shutil.rmtree(folder / _PARTS)


def content_digest(pixels_sha: hashlib._Hash, shape: tuple[int, ...], labels: Labels | None) -> str:
    """A store's digest, from the running SHA-256 of its pixels."""
    sha = pixels_sha.copy()
    sha.update(str(shape).encode())
    if labels is not None:
        sha.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return sha.hexdigest()


def check_unreadable(unreadable: Sequence[str], done: int, total: int, plan: DataPlan) -> None:
    """Raise PlanError, naming the first unreadable images, if they are more than the plan's share of `total`."""
    if len(unreadable) <= plan.max_unreadable * total:
        return
    names = "; ".join(unreadable[:_NAMES_SHOWN])
    more = f"; and {len(unreadable) - _NAMES_SHOWN} more" if len(unreadable) > _NAMES_SHOWN else ""
    raise PlanError(
        f"data.max_unreadable = {plan.max_unreadable}: expected at most this share of the {total} images "
        f"in {plan.path} to be unreadable, but {len(unreadable)} of the {done} images read so far are: {names}{more}. "
        "Repair or remove them, or raise data.max_unreadable."
    )


def _open(path: Path) -> BinaryIO:
    return path.open("r+b" if path.exists() else "w+b")


def _restore(content: Content, log: PartLog, total: int | None, report: Report) -> None:
    for part in log.read():
        if not content.restore(part):
            break
        report(content.done, total or 0)
    if content.done:
        _log.info("%d images are decoded already", content.done)
    content.cut()


def _decode_rest(
    content: Content, log: PartLog, source: Source, plan: DataPlan, key: str, total: int | None, report: Report
) -> None:
    with closing(decode_all(source.items(content.done), Transform.of(plan))) as decoded_items:
        for decoded in decoded_items:
            content.take(decoded)
            if total is not None:
                check_unreadable(content.complaints, content.done, total, plan)
            if log.is_due():
                log.write(content.next_part(key))
            report(content.done, total or 0)
    if not content.done:
        raise plan_error("data.path", plan.path, "at least one image", "The data set is empty: choose another.")
    check_unreadable(content.complaints, content.done, content.done, plan)
