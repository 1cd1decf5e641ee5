"""The mean and covariance of features, and their Frechet distance."""

import contextlib
import io
import math
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
from ebdiff_orchestrator.evaluation.wavelet import distance_of_statistics, packet_groups, packets
from ebdiff_orchestrator.evaluation.work import Shard, read_features, shards_of
from region_workers.storage.durable import write_bytes
from schemas.digest import digest
from schemas.errors import RunFailed
from schemas.evaluation import ExtractorChoice, Measure

_BROKEN = (EOFError, zipfile.BadZipFile, zlib.error, struct.error)  # an archive's end, or its bytes
_NOT_SUCH_ARRAYS = (KeyError, AttributeError, TypeError, RuntimeError, OverflowError, *_BROKEN)
_MOST_BYTES = 4 * 8 * FEATURES**2


@dataclass(frozen=True)
class Statistics:
    """Mean [features] and covariance [features, features], float64, and of how many images (0: not known).

    Of wavelet packets both are stacked: [packets, features] and [packets, features, features].
    """

    mean: np.ndarray[Any, Any]
    covariance: np.ndarray[Any, Any]
    num_images: int


def shard_statistics(folder: Path, num_images: int) -> Statistics:
    """The statistics of all shards in `folder`, in their order; never holds more than one shard's features.

    Divides by N - 1, as pytorch-fid does (`numpy.cov`).
    """
    shards = shards_of(num_images)
    mean = sum(read_features(folder, shard).astype(np.float64).sum(axis=0) for shard in shards) / num_images
    scatter = np.zeros((len(mean), len(mean)))
    for shard in shards:
        centred_NF = read_features(folder, shard) - mean
        scatter += centred_NF.T @ centred_NF
    return Statistics(mean, scatter / (num_images - 1), num_images)


def packet_statistics(folder: Path, num_images: int, extractor: ExtractorChoice) -> Statistics:
    """The same of wavelet packets, for which shards hold pixels; so many packets at a time as fit in memory."""
    assert extractor.packet_level is not None
    shards, side, level = shards_of(num_images), math.isqrt(extractor.num_features // 3), extractor.packet_level

    def values(shard: Shard, chosen: slice) -> np.ndarray[Any, Any]:
        return packets(read_features(folder, shard).reshape(-1, side, side, 3), level, chosen)

    means, covariances = [], []
    for chosen in packet_groups(*extractor.shape):
        mean_PF = sum(values(shard, chosen).sum(axis=1, dtype=np.float64) for shard in shards) / num_images
        scatter_PFF: Any = 0.0
        for shard in shards:
            centred_PNF = values(shard, chosen) - mean_PF[:, None]
            scatter_PFF = scatter_PFF + centred_PNF.transpose(0, 2, 1) @ centred_PNF
        means.append(mean_PF)
        covariances.append(scatter_PFF / (num_images - 1))
    return Statistics(np.concatenate(means), np.concatenate(covariances), num_images)


def statistics_of(folder: Path, num_images: int, extractor: ExtractorChoice) -> Statistics:
    """The statistics of all shards in `folder`, in their order."""
    if extractor.packet_level is None:
        return shard_statistics(folder, num_images)
    return packet_statistics(folder, num_images, extractor)


def write_statistics(path: Path, statistics: Statistics, measure: Measure | None = None) -> None:
    """Write them durably as an .npz that pytorch-fid reads too (`mu`, `sigma`), with `images` beside.

    So that they are not taken for an FID's, statistics of another `measure` have its digest with them.
    """
    encoded, mark = io.BytesIO(), mark_of(measure)
    more: dict[str, Any] = {} if mark is None else {"measure": np.array(mark)}
    count = np.int64(statistics.num_images)
    np.savez(encoded, mu=statistics.mean, sigma=statistics.covariance, images=count, **more)
    write_bytes(path, encoded.getvalue())


def read_statistics(path: Path, measure: Measure) -> Statistics:
    """The statistics in an .npz of ours or of pytorch-fid's. Raises ValueError or OSError if it holds no such thing."""
    try:
        _check_size(path, measure.extractor.shape)
        with np.load(path, allow_pickle=False) as archive:
            mean, covariance = archive["mu"].astype(np.float64), archive["sigma"].astype(np.float64)
            num_images = int(archive["images"]) if "images" in archive else 0
            mark = str(archive["measure"]) if "measure" in archive else None
    except _NOT_SUCH_ARRAYS as error:
        raise ValueError(f"no arrays mu and sigma in it ({error})") from error
    shape = measure.extractor.shape
    expected = shape, (*shape, shape[-1])
    if (mean.shape, covariance.shape) != expected:
        raise ValueError(f"mu {mean.shape}, sigma {covariance.shape}; not {expected[0]}, {expected[1]}")
    if mark not in (None, mark_of(measure)):
        raise ValueError("they are of another measure: other features, or drawings rendered otherwise")
    return Statistics(mean, covariance, num_images)


def spread_features(folder: Path, num_images: int, most: int) -> np.ndarray[Any, Any]:
    """At most so many features of those in `folder`, of images evenly spread, since data may be sorted."""
    chosen = evenly(num_images, most)
    parts = []
    for shard in shards_of(num_images):
        of_shard = chosen[(chosen >= shard.first) & (chosen < shard.first + shard.count)]
        if len(of_shard):
            parts.append(read_features(folder, shard)[of_shard - shard.first])
    return np.concatenate(parts)


def evenly(total: int, most: int) -> np.ndarray[Any, Any]:
    """At most so many of the numbers below `total`."""
    count = min(total, most)
    return np.arange(count) * total // count


def write_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Durably, as an .npz, which notices damage."""
    encoded = io.BytesIO()
    np.savez(encoded, array=array)
    write_bytes(path, encoded.getvalue())


def read_array(path: Path, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A float32 array of `write_array`. Raises ValueError or OSError if the file holds no such thing."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            array: np.ndarray[Any, Any] = archive["array"]
    except _NOT_SUCH_ARRAYS as error:
        raise ValueError(f"no such array in it ({error})") from error
    if array.shape != shape or array.dtype != np.float32:
        raise ValueError(f"{array.dtype} {array.shape}; not float32 {shape}")
    return array


def mark_of(measure: Measure | None) -> str | None:
    """The digest that marks statistics of anything but Inception's features of images; None for those."""
    if measure is None or (measure.extractor.name == "inception" and measure.raster is None):
        return None
    return digest(measure.key)


def _check_size(path: Path, shape: tuple[int, ...]) -> None:
    """Raise ValueError if the archive unpacks to far more than the arrays, or an FID's, whatever it is packed in."""
    most_bytes = max(_MOST_BYTES, 16 * math.prod(shape) * shape[-1])
    with zipfile.ZipFile(path) as archive:
        unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
    if unpacked_bytes > most_bytes:
        raise ValueError(f"it unpacks to {unpacked_bytes:,} bytes, more than {most_bytes:,}")


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """Computed by pytorch-fid's own function; of wavelet packets their mean. RunFailed where that finds no number.

    Fewer images than features make a covariance singular; pytorch-fid's remedy (1e-6 on both diagonals where the
    root is not finite) is kept, so the number is the one that it gives.
    """
    if one.mean.ndim == 2:
        return distance_of_statistics(one.mean, one.covariance, (other.mean, other.covariance))
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
