"""Stores: samples made once, memory-mapped, shared by all workers of a machine; and the one of a plan's images."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from region_workers.data.build import PARTS, check_unreadable, decode_into
from region_workers.data.decode import TRANSFORM_VERSION
from region_workers.data.labels import Labels
from region_workers.data.samples import Array, Checksums, PixelSamples, Samples
from region_workers.data.sources import Source, open_source
from region_workers.storage.durable import naming, write_bytes, write_model
from region_workers.storage.integrity import bytes_digest, read_verified
from region_workers.storage.locks import Report, build_lock
from schemas.data import ImageInfo, StoreInfo
from schemas.digest import digest
from schemas.errors import PlanError, RunFailed, plan_error
from schemas.plan import DataPlan

SAMPLES, CHECKSUMS, LABELS, INFO = "samples.npy", "checksums.npy", "labels.npy", "store.json"
_log = logging.getLogger(__name__)


class Store(ABC):
    """A store that lies in a folder, opened without reading its samples; RunFailed if it is missing or not whole.

    `array`: the samples, memory-mapped, as `info` describes them; `labels`: int64 [N], or None if the plan names no
    column of them.
    """

    what: ClassVar[str]
    place: ClassVar[str]  # in the cache
    stall_limit_s: ClassVar[float]  # so long the one that builds it may show no progress
    dtype: ClassVar[type[np.generic]]
    info_type: ClassVar[type[StoreInfo]]
    info: StoreInfo

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._read()
        except (OSError, ValueError) as error:
            reason = f"{INFO} is not what was written" if isinstance(error, ValidationError) else error
            whole = f"{folder} is no whole {self.what} store"
            raise RunFailed(f"{whole}: {reason}. Delete it; it is built anew.") from error

    def _read(self) -> None:
        folder = self.folder
        self.info = self.info_type.model_validate_json((folder / INFO).read_bytes())
        self.array = self._map(folder / SAMPLES)
        checksums, sha256 = self.info.checksums, self.info.checksums_sha256
        self._checksums: Checksums = read_array(folder / CHECKSUMS, np.uint32, checksums, sha256)
        self.labels: Labels | None = None
        if self.info.labels_sha256 is not None:
            self.labels = read_array(folder / LABELS, np.int64, len(self), self.info.labels_sha256)

    @abstractmethod
    def samples(self) -> Samples:
        """What batches are served from; RunFailed where a sample is not what was stored."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the samples in order, of the shape, and of what else there is of them (labels, offsets)."""
        return self.info.digest

    def __len__(self) -> int:
        return self.info.samples

    @classmethod
    def find(cls, cache_dir: Path, digest: str) -> Self | None:
        """A whole store with this content, without a look at what it is made of; None if the cache has none."""
        for path in sorted((cache_dir / cls.place).glob(f"[!.]*/{INFO}")):
            try:
                if cls.info_type.model_validate_json(path.read_bytes()).digest == digest:
                    return cls(path.parent)
            except (OSError, ValidationError, RunFailed) as error:
                _log.info("passed over %s: %s", path.parent, error)
        return None

    @classmethod
    def of_key(cls, cache_dir: Path, key: str) -> Self | None:
        """The whole store of this key; None if the cache has none."""
        folder = cls._folder(cache_dir, key)
        if not (folder / INFO).exists():
            return None
        try:
            store = cls(folder)
        except RunFailed as error:
            _log.warning("%s", error)
            return None
        return store if store.info.key == key else None

    @classmethod
    def built_once(
        cls, cache_dir: Path, key: str, build: Callable[[Path, Report], None], report: Report | None
    ) -> Self:
        """The store of this key, whose folder `build` fills where there is none, in one process at a time."""
        store = cls.of_key(cache_dir, key)
        if store is not None:
            return store
        folder = cls._folder(cache_dir, key)
        if not os.access(folder.parent, os.W_OK):  # a cache that others filled is still of use
            raise _cache_error(folder.parent, "it is not writable")
        lock = folder.with_name(f"{folder.name}.lock")
        told = report or (lambda done, total: None)
        with naming(folder), build_lock(lock, told, cls.stall_limit_s, cls.what) as noted_report:
            store = cls.of_key(cache_dir, key)
            if store is None:
                build(folder, noted_report)
                store = cls(folder)
        return store

    @classmethod
    def _folder(cls, cache_dir: Path, key: str) -> Path:
        return make_place(cache_dir / cls.place) / key[:16]

    def _map(self, path: Path) -> np.memmap[Any, Any]:
        found_bytes = path.stat().st_size
        if found_bytes != self.info.samples_bytes:
            raise ValueError(f"{path.name} has {found_bytes} bytes, not the {self.info.samples_bytes} of {INFO}")
        array: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        _check_kind(path, array, self.dtype, self.info.shape)
        return array


class ImageStore(Store):
    """Decoded images: `array` uint8 [N, H, W, C]."""

    what, place, stall_limit_s = "image", "images", 1800.0
    dtype, info_type = np.uint8, ImageInfo
    info: ImageInfo

    def samples(self) -> PixelSamples:
        return PixelSamples(self.array, self.labels, self._checksums)

    def piece(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """A copy of the images [start, stop), read as the samples are."""
        return self.samples().read(np.arange(start, min(stop, len(self))))


def ensure_store(plan: DataPlan, cache_dir: Path, report: Report | None = None) -> ImageStore:
    """The store of the plan's images, built now if there is none; built once though several processes ask at a time.

    `report(done, total)` counts images while this process, or the one that it waits for, builds; a total of 0 means
    that it is not known. A build that was killed goes on from what it had made safe. Raises PlanError for a source
    that cannot be read or is empty, for too many unreadable images and for images without a proper label, RunFailed for
    a builder that shows no progress and for a full disk.
    """
    make_place(cache_dir / ImageStore.place)
    source = open_source(plan, cache_dir)
    identity = source.identity()
    key = store_key(identity, plan)
    store = ImageStore.built_once(cache_dir, key, partial(_build, source, identity, key, plan), report)
    # It may have been built under a higher limit than this plan's.
    total = len(store) + len(store.info.unreadable_names)
    check_unreadable(store.info.unreadable_names, total, total, plan)
    return store


def store_key(identity: dict[str, Any], plan: DataPlan) -> str:
    """SHA-256 (hex) of what determines a store of images: the source's identity and what is done to each image."""
    done = {"resolution", "channels", "image_column", "split", "config_name"}
    done |= {"crop", "interpolation", "label_column", "max_pixels"}
    transform = {"version": TRANSFORM_VERSION, **plan.model_dump(mode="json", include=done)}
    return digest({"source": identity, "transform": transform})


def _build(source: Source, identity: dict[str, Any], key: str, plan: DataPlan, folder: Path, report: Report) -> None:
    if (folder / INFO).exists():  # it was whole once; without, it is a killed builder's, to go on with
        shutil.rmtree(folder)
    image_bytes = plan.resolution**2 * plan.channels
    check_space(folder, (source.count() or 0) * image_bytes, f"the decoded images of {plan.path}")
    folder.mkdir(exist_ok=True)
    try:
        content = decode_into(folder / SAMPLES, source, plan, key, report)
        check_unchanged(identity, source.identity(), plan)
        labels, num_classes, class_names = content.labels()
        names = tuple(name for name, _ in content.unreadable)
        _log.info("decoded %d images of %s (%d unreadable)", content.images, plan.path, len(names))
        more = {"num_classes": num_classes, "class_names": class_names, "unreadable_names": names, "source": identity}
        write_info(ImageStore, folder, key, content.shape(), content.sha, content.checksums(), labels, **more)
        shutil.rmtree(folder / PARTS)
    except (PlanError, RunFailed):
        shutil.rmtree(folder)
        raise


def check_unchanged(before: dict[str, Any], now: dict[str, Any], plan: DataPlan) -> None:
    """Raise RunFailed if the plan's source is no longer what it was before it was read."""
    if before != now:
        raise RunFailed(f"{plan.path} changed while it was read. Start again once its files are at rest.")


def make_place(path: Path) -> Path:
    """Have the cache's folder for stores of one kind. Raises PlanError if that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cache_error(path, str(error)) from error
    return path


def check_space(folder: Path, needed_bytes: int, of: str) -> None:
    """Raise RunFailed unless the disk has room for what is still missing of that many bytes of samples."""
    file = folder / SAMPLES
    missing_bytes = needed_bytes - (file.stat().st_blocks * 512 if file.exists() else 0)
    free_bytes = shutil.disk_usage(folder.parent).free
    if missing_bytes > free_bytes:
        raise RunFailed(
            f"{of} need {missing_bytes / 1e9:.1f} GB more and {folder.parent} has {free_bytes / 1e9:.1f} GB free. "
            "Make room, or set workers.cache_dir or EBDIFF_CACHE to another disk."
        )


def write_info(
    kind: type[Store],
    folder: Path,
    key: str,
    shape: tuple[int, ...],
    sha: hashlib._Hash,
    checksums: Checksums,
    labels: Labels | None,
    **more: Any,
) -> None:
    """Write what makes a store of a folder with all its samples, whose running SHA-256 is `sha`; the info last."""
    sha = sha.copy()
    sha.update(str(shape).encode())
    if labels is not None:
        sha.update(np.ascontiguousarray(labels, dtype="<i8").data)
    info = kind.info_type(
        key=key,
        digest=sha.hexdigest(),
        shape=shape,
        samples_bytes=(folder / SAMPLES).stat().st_size,
        checksums_sha256=write_array(folder / CHECKSUMS, checksums),
        labels_sha256=None if labels is None else write_array(folder / LABELS, labels),
        **more,
    )
    write_model(folder / INFO, info)


def write_array(path: Path, values: Array) -> str:
    """Write a small array durably; its file's SHA-256 (hex)."""
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    write_bytes(path, file.getvalue())
    return bytes_digest([file.getvalue()])


def read_array(path: Path, dtype: type[np.generic], count: int, sha256: str) -> Array:
    """The array of a `write_array`. Raises DamagedFileError, OSError or ValueError."""
    values: Array = np.load(io.BytesIO(read_verified(path, sha256)), allow_pickle=False)
    _check_kind(path, values, dtype, (count,))
    return values


def _check_kind(path: Path, array: Array, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{path.name} holds {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")


def _cache_error(path: Path, reason: str) -> PlanError:
    remedy = f"No store can be built ({reason}): set it, or EBDIFF_CACHE, to a folder of yours."
    return plan_error("workers.cache_dir", path.parent, "a folder that can be written", remedy)
