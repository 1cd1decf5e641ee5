"""The mean and covariance of features, the reference that a run is measured against, and their Frechet distance."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_fid.fid_score import calculate_frechet_distance

from ebdiff_orchestrator.evaluation.inception import FEATURES
from ebdiff_orchestrator.evaluation.sources import image_files
from ebdiff_orchestrator.evaluation.work import read_features, remove_shards, shards_of
from region_workers.data.decode import UnreadableImageError, open_image
from region_workers.data.store import Store
from region_workers.storage.durable import write_bytes
from region_workers.storage.integrity import file_digest
from schemas.digest import digest
from schemas.errors import RunFailed, user_error
from schemas.evaluation import FolderImages, Measure, StoredImages
from schemas.limits import MAX_PIXELS
from schemas.plan import Plan

_NOT_SUCH_ARRAYS = (KeyError, AttributeError, TypeError, EOFError, RuntimeError, OverflowError)
_MOST_BYTES = 4 * 8 * FEATURES**2
_VERSION = 1  # of how features and statistics are computed

MakeFeatures = Callable[[Path, StoredImages | FolderImages, int], None]


@dataclass(frozen=True)
class Statistics:
    """Mean [features] and covariance [features, features], float64, and of how many images (0: not known)."""

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


def write_statistics(path: Path, statistics: Statistics, measure: Measure | None = None) -> None:
    """Write them durably as an .npz that pytorch-fid reads too (`mu`, `sigma`), with `images` beside.

    So that they are not taken for an FID's, statistics of another `measure` have its digest with them.
    """
    encoded, mark = io.BytesIO(), _mark(measure)
    more: dict[str, Any] = {} if mark is None else {"measure": np.array(mark)}
    count = np.int64(statistics.num_images)
    np.savez(encoded, mu=statistics.mean, sigma=statistics.covariance, images=count, **more)
    write_bytes(path, encoded.getvalue())


def read_statistics(path: Path, measure: Measure) -> Statistics:
    """The statistics in an .npz of ours or of pytorch-fid's. Raises ValueError or OSError if it holds no such thing."""
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as archive:
            mean, covariance = archive["mu"].astype(np.float64), archive["sigma"].astype(np.float64)
            num_images = int(archive["images"]) if "images" in archive else 0
            mark = str(archive["measure"]) if "measure" in archive else None
    except (*_NOT_SUCH_ARRAYS, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise ValueError(f"no arrays mu and sigma in it ({error})") from error
    num_features = measure.extractor.num_features
    expected = (num_features,), (num_features, num_features)
    if (mean.shape, covariance.shape) != expected:
        raise ValueError(f"mu {mean.shape}, sigma {covariance.shape}; not {expected[0]}, {expected[1]}")
    if mark not in (None, _mark(measure)):
        raise ValueError("they are of another measure: other features, or drawings rendered otherwise")
    return Statistics(mean, covariance, num_images)


def _mark(measure: Measure | None) -> str | None:
    """Of statistics that are no FID's of images."""
    if measure is None or (measure.extractor.name == "inception" and measure.raster is None):
        return None
    return digest(measure.key)


def _check_size(path: Path) -> None:
    """Raise ValueError if the archive unpacks to far more than the arrays of an FID, whatever it is packed in."""
    with zipfile.ZipFile(path) as archive:
        unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
    if unpacked_bytes > _MOST_BYTES:
        raise ValueError(f"it unpacks to {unpacked_bytes:,} bytes, more than {_MOST_BYTES:,}")


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """Computed by pytorch-fid's own function. Raises RunFailed where that finds no number.

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


@dataclass(frozen=True)
class Reference:
    """Reference images, or their statistics; `digest` says which, `num_images` is 0 where it is not known."""

    description: str
    digest: str
    num_images: int
    images: StoredImages | FolderImages | None
    file: Path
    measure: Measure

    def statistics(self, work_dir: Path, make_features: MakeFeatures) -> Statistics:
        """The statistics in `file`; if they are not there yet, they are computed of the images and put there.

        Features are made under `work_dir`, where all workers can write, and deleted once the statistics are kept.
        """
        try:
            return read_statistics(self.file, self.measure)
        except (OSError, ValueError):  # not computed yet, or damaged
            if self.images is None:
                raise
        folder = work_dir / f"reference-{self.digest[:16]}"
        make_features(folder, self.images, self.num_images)
        statistics = shard_statistics(folder, self.num_images)
        write_statistics(self.file, statistics, self.measure)
        remove_shards(folder)
        folder.rmdir()
        return statistics


def own_reference(plan: Plan, store: Store, cache_dir: Path, limit: int | None, measure: Measure) -> Reference:
    """The images or drawings that the run trains on, unflipped, or just the first `limit` of them."""
    total, noun = len(store), plan.data.kind
    if limit is not None and not 2 <= limit <= total:
        expected = f"2 to {total}, the {noun} of the run's data"
        raise user_error("--reference-images", limit, expected, "Leave it out to use them all.")
    count = limit or total
    which = "the run's data" if count == total else f"only the first {count:,} of the"
    key = digest({"version": _VERSION, "images": store.digest, "count": count, **measure.key})
    images = StoredImages(data=plan.data, cache_dir=plan.workers.cache_dir, store_digest=store.digest)
    description = f"{which} ({total:,} {noun})" if count == total else f"{which} {total:,} {noun} of the run's data"
    return Reference(description, key, count, images, _cached(cache_dir, measure, key), measure)


def given_reference(
    path: Path, cache_dir: Path, measure: Measure, max_pixels: int = MAX_PIXELS, side: int | None = None
) -> Reference:
    """A folder of images of at most `max_pixels`, or an .npz of statistics as pytorch-fid writes it.

    UserError if it is neither, or if `side` is given and an image is no square of it.
    """
    path = path.expanduser().resolve()
    if path.is_dir():
        files = image_files(path)
        if len(files) < 2:
            raise user_error("--reference", path, "a folder with at least 2 images", "Check the path.")
        _check_sizes(files, max_pixels, side)
        contents = [[file.name, file_digest(file)] for file in files]
        key = digest({"version": _VERSION, "folder": contents, **measure.key})
        description = f"{path.name}/ ({len(files):,} images)"
        images = FolderImages(folder=str(path), max_pixels=max_pixels)
        return Reference(description, key, len(files), images, _cached(cache_dir, measure, key), measure)
    try:
        if path.exists() and not path.is_file():  # to read a pipe would wait for its other end
            raise ValueError("it is no regular file")
        statistics = read_statistics(path, measure)
    except (OSError, ValueError) as error:
        written = "`python -m pytorch_fid --save-stats` writes"
        if _mark(measure):
            written = "lies beside the report of an evaluation by the same measure"
        expected = f"a folder of images, or an .npz with mu and sigma, as {written}"
        raise user_error("--reference", path, expected, f"Check the file ({error}).") from None
    count = f"{statistics.num_images:,} images" if statistics.num_images else "images not counted"
    description = f"{path.name} ({count})"
    return Reference(description, file_digest(path), statistics.num_images, None, path, measure)


def _check_sizes(files: list[Path], max_pixels: int, side: int | None) -> None:
    """Raise UserError unless all are images of one size, as pytorch-fid demands."""
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        try:
            with open_image(str(file), max_pixels) as image:
                sizes.setdefault(image.size, file)
        except UnreadableImageError as error:
            raise user_error("--reference", file, "an image that can be read", f"Remove it ({error}).") from None
    if side is not None and set(sizes) != {(side, side)}:
        size = "x".join(map(str, next(size for size in sizes if size != (side, side))))
        raise user_error("--reference", files[0].parent, f"images of {side}x{side}, as the run's", f"Not of {size}.")
    if len(sizes) > 1:
        found = ", ".join(f"{file.name} of {width}x{height}" for (width, height), file in sizes.items())
        raise user_error("--reference", files[0].parent, "images of one size", f"Resize them: {found}.")


def _cached(cache_dir: Path, measure: Measure, key: str) -> Path:
    return cache_dir / ("fid" if measure.extractor.name == "inception" else measure.extractor.name) / f"{key[:16]}.npz"
