"""The store of a plan's drawings: the rows of all of them in one memory-mapped file, made once."""

import hashlib
import logging
import os
import shutil
import zlib
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from region_workers.data.build import check_unreadable
from region_workers.data.drawing_sources import DrawingSource, open_drawings
from region_workers.data.drawings import (
    ROWS_VERSION,
    LongDrawingError,
    Rows,
    UnreadableDrawingError,
    raster,
    rows_of,
    strokes_of,
)
from region_workers.data.samples import DrawingSamples, Numbers, npy_header
from region_workers.data.store import (
    SAMPLES,
    ImageStore,
    Store,
    check_unchanged,
    ensure_store,
    read_array,
    write_array,
    write_info,
)
from region_workers.storage.locks import Report
from schemas.data import DrawingInfo, DrawingsPlan, RasterPlan
from schemas.digest import digest
from schemas.errors import PlanError, RunFailed, plan_error
from schemas.plan import DataPlan

OFFSETS = "offsets.npy"
_REPORT_EVERY = 256
_log = logging.getLogger(__name__)


class DrawingStore(Store):
    """Drawings as rows: `array` float32 [P, 3], `lengths` int64 [N] the rows of each."""

    what, place, stall_limit_s = "drawing", "drawings", 1800.0
    dtype, info_type = np.float32, DrawingInfo
    info: DrawingInfo

    def _read(self) -> None:
        super()._read()
        sha256 = self.info.offsets_sha256
        self._offsets: Numbers = read_array(self.folder / OFFSETS, np.int64, len(self) + 1, sha256)
        self.lengths: Numbers = np.diff(self._offsets)

    def samples(self) -> DrawingSamples:
        return DrawingSamples(self.array, self._offsets, self._checksums)

    def piece(self, start: int, stop: int, plan: RasterPlan) -> npt.NDArray[np.uint8]:
        """The drawings [start, stop) as pictures, uint8 [n, H, W, 1]."""
        samples = self.samples()
        pictures = []
        for number in range(start, min(stop, len(self))):
            (rows_L3,) = samples.read(np.array([number]))
            pictures.append(raster(strokes_of(rows_L3, self.info.coordinates), plan))
        return np.stack(pictures) if pictures else np.empty((0, plan.canvas_px, plan.canvas_px, 1), np.uint8)


def ensure_data(plan: DataPlan, cache_dir: Path, report: Report | None = None) -> ImageStore | DrawingStore:
    """The store of the plan's images or drawings, as `ensure_store` and `ensure_drawings` make them."""
    return (ensure_store if plan.drawings is None else ensure_drawings)(plan, cache_dir, report)


def ensure_drawings(plan: DataPlan, cache_dir: Path, report: Report | None = None) -> DrawingStore:
    """The store of the plan's drawings, built now if there is none; built once though several processes ask at a time.

    `report(done, total)` counts drawings while this process, or the one that it waits for, builds. A build that was
    killed begins anew: it takes a minute for some hundred thousand drawings. Raises PlanError for a source that cannot
    be read or gives no drawing, and for too many unreadable ones; RunFailed for a builder that shows no progress.
    """
    assert plan.drawings is not None
    source = open_drawings(plan)
    identity = source.identity()
    key = drawings_key(identity, plan.drawings)
    build = partial(_build, source, identity, key, plan, plan.drawings)
    store = DrawingStore.built_once(cache_dir, key, build, report)
    total = len(store) + len(store.info.unreadable_names) + len(store.info.too_long_names)
    check_unreadable(store.info.unreadable_names, total, total, plan)  # another plan's limit may have been higher
    return store


def drawings_key(identity: dict[str, Any], plan: DrawingsPlan) -> str:
    """SHA-256 (hex) of what determines a store of drawings: the source's identity and what is done to each drawing."""
    transform = {"version": ROWS_VERSION, **plan.model_dump(mode="json", exclude={"raster"})}
    return digest({"source": identity, "transform": transform})


def _build(
    source: DrawingSource,
    identity: dict[str, Any],
    key: str,
    data: DataPlan,
    plan: DrawingsPlan,
    folder: Path,
    report: Report,
) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    try:
        with (folder / SAMPLES).open("wb") as file:
            content = _Content(file)
            content.fill(source, data, plan, report)
        check_unchanged(identity, source.identity(), data)
        offsets = np.concatenate([[0], np.cumsum(content.lengths, dtype=np.int64)])  # where each begins and all end
        sha = content.sha.copy()
        sha.update(offsets.astype("<i8").data)
        more = {
            "drawings": len(content.lengths),
            "coordinates": plan.coordinates,
            "offsets_sha256": write_array(folder / OFFSETS, offsets),
            "unreadable_names": tuple(name for name, _ in content.unreadable),
            "too_long_names": tuple(content.too_long),
            "source": identity,
        }
        checksums = np.array(content.checksums, np.uint32)
        write_info(DrawingStore, folder, key, (int(offsets[-1]), 3), sha, checksums, None, **more)
    except (PlanError, RunFailed):
        shutil.rmtree(folder)
        raise


class _Content:
    """What was read so far: the rows in `file`, and the names of what was left out."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha = hashlib.sha256()
        self.lengths: list[int] = []
        self.checksums: list[int] = []
        self.unreadable: list[tuple[str, str]] = []  # with the reasons
        self.too_long: list[str] = []

    @property
    def done(self) -> int:
        """Drawings of the source so far."""
        return len(self.lengths) + len(self.unreadable) + len(self.too_long)

    def fill(self, source: DrawingSource, data: DataPlan, plan: DrawingsPlan, report: Report) -> None:
        """Write the rows of every drawing of the source. PlanError if too many are unreadable, or all too long."""
        total = source.count()
        self._file.write(npy_header("<f4", (0, 3)))
        for item in source.items():
            try:
                self._append(rows_of(source.strokes(item), plan))
            except LongDrawingError:
                self.too_long.append(item.name)
            except UnreadableDrawingError as error:
                self.unreadable.append((item.name, str(error)))
            if self.done % _REPORT_EVERY == 0:
                check_unreadable(self.unreadable, self.done, total, data)
                report(self.done, total)
        report(self.done, total)
        check_unreadable(self.unreadable, self.done, self.done, data)
        if not self.done:
            raise plan_error("data.path", data.path, "at least one drawing", "The data set is empty: choose another.")
        if not self.lengths:
            expected = f"more points than at least one of the {self.done} drawings in {data.path} has"
            remedy = "Raise it, or data.drawings.point_spacing."
            raise plan_error("data.drawings.max_points", plan.max_points, expected, remedy)
        message = "read %d drawings of %s (%d unreadable, %d too long)"
        _log.info(message, len(self.lengths), data.path, len(self.unreadable), len(self.too_long))
        self._file.seek(0)
        self._file.write(npy_header("<f4", (sum(self.lengths), 3)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _append(self, rows: Rows) -> None:
        self._file.write(rows.data)
        self.sha.update(rows.data)
        self.checksums.append(zlib.crc32(rows.data))
        self.lengths.append(len(rows))
