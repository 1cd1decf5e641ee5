"""Shards: fixed ranges of images whose features are written, whole and with a digest, one file each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ebdiff_orchestrator.evaluation.inception import BATCH_IMAGES, FEATURES
from region_workers.storage.durable import write_file, write_model
from region_workers.storage.integrity import file_digest, holds
from schemas.evaluation import ShardRecord

SHARD_IMAGES = 5 * BATCH_IMAGES  # whole batches, so that batches fall as pytorch-fid's do
IMAGES_FOLDER = "images"


@dataclass(frozen=True)
class Shard:
    """The images [first, first + count)."""

    index: int
    first: int
    count: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"features-{self.index:05d}"


def shards_of(num_images: int) -> tuple[Shard, ...]:
    """The shards of `num_images` images: 250 each, the last one shorter; workers and batch size play no part."""
    starts = range(0, num_images, SHARD_IMAGES)
    return tuple(Shard(i, first, min(SHARD_IMAGES, num_images - first)) for i, first in enumerate(starts))


def features_file(folder: Path, shard: Shard) -> Path:
    """Float32 [count, 2048], as numpy writes it."""
    return folder / f"{shard.name}.npy"


def record_file(folder: Path, shard: Shard) -> Path:
    """A `ShardRecord`; its being there says that the shard is finished."""
    return folder / f"{shard.name}.json"


def progress_file(folder: Path, shard: Shard) -> Path:
    """Where the shard stands, rewritten now and then."""
    return folder / f"progress-{shard.index:05d}.json"


def image_file(folder: Path, index: int) -> Path:
    """The PNG of image `index`, if images are kept."""
    return folder / IMAGES_FOLDER / f"{index:05d}.png"


def write_shard(folder: Path, shard: Shard, features: np.ndarray[Any, Any], making_s: float, device: str) -> None:
    """Write a shard durably: the features, then the record that vouches for them."""
    assert features.shape == (shard.count, FEATURES)
    assert features.dtype == np.float32

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, features, allow_pickle=False)

    write_file(features_file(folder, shard), write)
    digest = file_digest(features_file(folder, shard))
    record = ShardRecord(sha256=digest, num_images=shard.count, making_s=making_s, device=device)
    write_model(record_file(folder, shard), record)
    progress_file(folder, shard).unlink(missing_ok=True)


def finished_record(folder: Path, shard: Shard, with_images: bool = False) -> ShardRecord | None:
    """The record of a shard that is there and whole, else None."""
    try:
        record = ShardRecord.model_validate_json(record_file(folder, shard).read_bytes())
        whole = record.num_images == shard.count and holds(features_file(folder, shard), record.sha256)
    except (OSError, ValidationError):
        return None
    if with_images:
        whole = whole and all(image_file(folder, shard.first + i).is_file() for i in range(shard.count))
    return record if whole else None


def read_features(folder: Path, shard: Shard) -> np.ndarray[Any, Any]:
    """The features of a finished shard, float32 [count, 2048]."""
    features: np.ndarray[Any, Any] = np.load(features_file(folder, shard), allow_pickle=False)
    return features


def remove_shards(folder: Path) -> None:
    """Delete the features, once what was computed of them is written; images stay."""
    for pattern in ("features-*", "progress-*"):
        for path in folder.glob(pattern):
            path.unlink()
