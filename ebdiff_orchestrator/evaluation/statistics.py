"""The mean and covariance of features, and the Frechet distance between two of them, as pytorch-fid has it."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_fid.fid_score import calculate_frechet_distance

from ebdiff_orchestrator.evaluation.inception import FEATURES
from ebdiff_orchestrator.evaluation.shards import read_features, shards_of
from region_workers.storage.durable import write_file
from schemas.errors import RunFailed

_NOT_SUCH_ARRAYS = (KeyError, AttributeError, TypeError, EOFError, RuntimeError, OverflowError)


_MOST_BYTES = 4 * 8 * FEATURES**2


@dataclass(frozen=True)
class Statistics:
    """Mean [2048] and covariance [2048, 2048] of features, float64, and of how many images (0: not known)."""

    mean: np.ndarray[Any, Any]
    covariance: np.ndarray[Any, Any]
    num_images: int


def shard_statistics(folder: Path, num_images: int) -> Statistics:
    """The statistics of all shards in `folder`, in their order; never holds more than one shard's features.

    Divides by N - 1, as pytorch-fid does (`numpy.cov`).
    """
    shards = shards_of(num_images)
    total = np.zeros(FEATURES)
    for shard in shards:
        total += read_features(folder, shard).astype(np.float64).sum(axis=0)
    mean = total / num_images
    scatter = np.zeros((FEATURES, FEATURES))
    for shard in shards:
        centred_NF = read_features(folder, shard) - mean
        scatter += centred_NF.T @ centred_NF
    return Statistics(mean, scatter / (num_images - 1), num_images)


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write them durably as an .npz that pytorch-fid reads too (`mu`, `sigma`), with `images` beside."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, mu=statistics.mean, sigma=statistics.covariance, images=np.int64(statistics.num_images))

    write_file(path, write)


def read_statistics(path: Path) -> Statistics:
    """The statistics in an .npz of ours or of pytorch-fid's. Raises ValueError or OSError if it holds no such thing."""
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as archive:
            mean, covariance = archive["mu"].astype(np.float64), archive["sigma"].astype(np.float64)
            num_images = int(archive["images"]) if "images" in archive else 0
    except (*_NOT_SUCH_ARRAYS, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise ValueError(f"no arrays mu and sigma in it ({error})") from error
    if mean.shape != (FEATURES,) or covariance.shape != (FEATURES, FEATURES):
        raise ValueError(f"mu {mean.shape}, sigma {covariance.shape}; not ({FEATURES},), ({FEATURES}, {FEATURES})")
    return Statistics(mean, covariance, num_images)


def _check_size(path: Path) -> None:
    """Raise ValueError if the archive unpacks to far more than the arrays of an FID, whatever it is packed in."""
    with zipfile.ZipFile(path) as archive:
        unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
    if unpacked_bytes > _MOST_BYTES:
        raise ValueError(f"it unpacks to {unpacked_bytes:,} bytes, more than {_MOST_BYTES:,}")


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """FID, computed by pytorch-fid's own function. Raises RunFailed where that finds no number.

    Fewer images than features make a covariance singular; pytorch-fid's remedy (1e-6 on both diagonals where the
    root is not finite) is kept, so the number is the one that it gives.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            distance = calculate_frechet_distance(one.mean, one.covariance, other.mean, other.covariance)
    except TypeError as error:  # pytorch-fid passes scipy an argument that later ones do not take
        raise RunFailed(
            f"pytorch-fid does not work with scipy {metadata.version('scipy')} ({error}). Install scipy < 1.18; "
            "what is finished is kept, and the same command goes on."
        ) from None
    except ValueError as error:  # of an imaginary part
        raise _no_distance(one, other, str(error)) from None
    if not np.isfinite(distance):
        raise _no_distance(one, other, f"it gives {distance}")
    return float(distance)


def _no_distance(one: Statistics, other: Statistics, reason: str) -> RunFailed:
    return RunFailed(
        f"pytorch-fid finds no distance between {one.num_images} and {other.num_images or 'the given'} images "
        f"({reason}). Covariances of few images are singular: take more, with -n and --reference-images."
    )
