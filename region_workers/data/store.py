"""The image store: every image decoded once, memory-mapped, shared by all workers of a machine."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from region_workers.data.build import INFO, LABELS, PIXELS, build_store, check_unreadable, content_digest
from region_workers.data.build_lock import Report, build_lock
from region_workers.data.checksums import CHECKSUMS, Checksums, checked, map_array, opening, read_array
from region_workers.data.decode import TRANSFORM_VERSION
from region_workers.data.labels import Labels
from region_workers.data.samples import PixelSamples
from region_workers.data.sources import Source, open_source
from schemas.digest import digest
from schemas.errors import PlanError, RunFailed, plan_error
from schemas.plan import DataPlan
from schemas.store import StoreInfo

_STALL_LIMIT_S = 1800.0
_CHUNK_IMAGES_BYTES = 16 << 20
_log = logging.getLogger(__name__)


class ImageStore:
    """Decoded images: `images` uint8 [N, H, W, C], `labels` int64 [N] if the plan names a column of them.

    `digest` is that of both (SHA-256, hex).
    """

    def __init__(
        self,
        folder: Path,
        info: StoreInfo,
        images: np.memmap[Any, np.dtype[np.uint8]],
        checksums: Checksums,
        labels: Labels | None,
    ) -> None:
        self.folder = folder
        self.info = info
        self.images = images
        self._checksums = checksums
        self.labels = labels

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The store in `folder`, without reading its pixels. Raises RunFailed if it is missing or not whole."""
        with opening(folder, "image store", INFO):
            info = StoreInfo.model_validate_json((folder / INFO).read_bytes())
            images = map_array(folder / PIXELS, info.pixels_bytes, INFO)
            if images.shape != info.shape or images.dtype != np.uint8:
                raise ValueError(f"{PIXELS} holds {images.dtype} {images.shape}, not uint8 {info.shape} as {INFO} says")
            checksums = read_array(folder / CHECKSUMS, np.uint32, len(images), info.checksums_sha256)
            labels = read_labels(folder, info.num_classes, len(images), info.labels_sha256)
        return cls(folder, info, images, checksums, labels)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the pixels in order, of the shape, and of the labels if there are any."""
        return self.info.digest

    @property
    def num_classes(self) -> int | None:
        """How many classes the source names, or else one more than the largest label; None without labels."""
        return self.info.num_classes

    @property
    def unreadable(self) -> int:
        """How many images of the source were left out as unreadable."""
        return len(self.info.unreadable_names)

    def __len__(self) -> int:
        return self.info.shape[0]

    def samples(self) -> PixelSamples:
        """The images as samples to be served in batches; RunFailed where one is not what was decoded."""
        return PixelSamples(self.images, lambda read: checked(read, self._checksums, self.folder))

    def piece(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """A copy of the images [start, stop), read as the samples are."""
        return self.samples().read(np.arange(start, min(stop, len(self))))

    def verify(self) -> None:
        """Read every pixel and raise RunFailed unless the digest of pixels and labels is the recorded one."""
        sha = hashlib.sha256()
        rows = max(1, _CHUNK_IMAGES_BYTES // max(1, self.images[:1].nbytes))
        for start in range(0, len(self), rows):
            sha.update(np.ascontiguousarray(self.images[start : start + rows]).data)
        if content_digest(sha, self.info.shape, self.labels) != self.digest:
            raise RunFailed(f"the pixels in {self.folder} have changed since they were written. Delete the folder.")


def read_labels(folder: Path, num_classes: int | None, count: int, sha256: str | None) -> Labels | None:
    """The labels of a store's `count` images, None without classes. Raises OSError or ValueError as `read_array`."""
    return None if num_classes is None else read_array(folder / LABELS, np.int64, count, sha256)


def ensure_store(
    plan: DataPlan,
    cache_dir: Path,
    report: Callable[[int, int], None] | None = None,
    stall_limit_s: float = _STALL_LIMIT_S,
) -> ImageStore:
    """The store of the plan's images, built now if there is none; built once though several processes ask at a time.

    `report(done, total)` counts images while this process, or the one that it waits for, builds; a total of 0 means
    that it is not known. A build that was killed goes on from what it had made safe. Raises PlanError for a source
    that cannot be read or is empty, for too many unreadable images and for images without a proper label, RunFailed for
    a builder without progress in `stall_limit_s` seconds and for a full disk.
    """
    cache_folder(cache_dir, "images")
    source = open_source(plan, cache_dir)
    identity = source.identity()
    key = store_key(identity, plan)
    folder = cache_dir / "images" / key[:16]
    store = _opened(folder, key)
    if store is None:
        store = _build_locked(source, identity, key, plan, folder, report or silent, stall_limit_s)
    # It may have been built under a higher limit than this plan's.
    total = len(store) + store.unreadable
    check_unreadable(list(store.info.unreadable_names), total, total, plan)
    return store


def cache_folder(cache_dir: Path, kind: str) -> Path:
    """The cache's folder for stores of one kind, made if it is missing. Raises PlanError if that is not possible."""
    path = cache_dir / kind
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cache_error(path, str(error)) from error
    return path


def check_writable(folder: Path) -> None:
    """Raise PlanError if nothing can be built in the cache's folder; one that others filled is still of use."""
    if not os.access(folder, os.W_OK):
        raise _cache_error(folder, "it is not writable")


def silent(done: int, total: int) -> None:
    """Report nothing."""


def find_store(cache_dir: Path, digest: str) -> ImageStore | None:
    """A whole store with this content, without a look at its source; None if the cache has none."""
    for path in sorted((cache_dir / "images").glob(f"[!.]*/{INFO}")):
        try:
            if StoreInfo.model_validate_json(path.read_bytes()).digest == digest:
                return ImageStore.open(path.parent)
        except (OSError, ValidationError, RunFailed) as error:
            _log.info("passed over %s: %s", path.parent, error)
    return None


def store_key(identity: dict[str, Any], plan: DataPlan) -> str:
    """SHA-256 (hex) of what determines a store: the source's identity and what is done to each image.

    What is as it was before a field existed is left out, so that older stores are found.
    """
    transform: dict[str, Any] = {
        "version": TRANSFORM_VERSION,
        "resolution": plan.resolution,
        "channels": plan.channels,
        "image_column": plan.image_column,
        "split": plan.split,
        "config_name": plan.config_name,
    }
    defaults = DataPlan()
    for name in ("crop", "interpolation", "label_column", "max_pixels"):
        if getattr(plan, name) != getattr(defaults, name):
            transform |= plan.model_dump(mode="json", include={name})
    return digest({"source": identity, "transform": transform})


def _build_locked(
    source: Source,
    identity: dict[str, Any],
    key: str,
    plan: DataPlan,
    folder: Path,
    report: Report,
    stall_limit_s: float,
) -> ImageStore:
    check_writable(folder.parent)
    with build_lock(folder.parent / f"{folder.name}.lock", report, stall_limit_s) as noted_report:
        store = _opened(folder, key)
        if store is None:
            if (folder / INFO).exists():  # it was whole once; without, it is a killed builder's, to go on with
                shutil.rmtree(folder)
            _check_space(source, plan, folder)
            try:
                build_store(folder, source, plan, key, identity, noted_report)
            except (PlanError, RunFailed):
                shutil.rmtree(folder)
                raise
            store = ImageStore.open(folder)
            _log.info("decoded %d images of %s (%d unreadable)", len(store), plan.path, store.unreadable)
    return store


def _opened(folder: Path, key: str) -> ImageStore | None:
    if not (folder / INFO).exists():
        return None
    try:
        store = ImageStore.open(folder)
    except RunFailed as error:
        _log.warning("%s", error)
        return None
    return store if store.info.key == key else None


def _cache_error(path: Path, reason: str) -> PlanError:
    remedy = f"No store can be built ({reason}): set it, or EBDIFF_CACHE, to a folder of yours."
    return plan_error("workers.cache_dir", path.parent, "a folder that can be written", remedy)


def _check_space(source: Source, plan: DataPlan, folder: Path) -> None:
    pixels = folder / PIXELS
    there_bytes = pixels.stat().st_size if pixels.exists() else 0
    needed_bytes = (source.count() or 0) * plan.resolution**2 * plan.channels - there_bytes
    free_bytes = shutil.disk_usage(folder.parent).free
    if needed_bytes > free_bytes:
        raise RunFailed(
            f"the decoded images of {plan.path} need {needed_bytes / 1e9:.1f} GB and {folder.parent} has "
            f"{free_bytes / 1e9:.1f} GB free. Make room, or set workers.cache_dir or EBDIFF_CACHE to another disk."
        )
