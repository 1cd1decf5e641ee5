"""The images that a run is measured against: its own, a folder's, or just their statistics; kept in the cache."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ebdiff_orchestrator.evaluation.feature_measures import MOST_FEATURES, Features
from ebdiff_orchestrator.evaluation.features import Workers, make_features
from ebdiff_orchestrator.evaluation.statistics import (
    Statistics,
    mark_of,
    read_array,
    read_statistics,
    spread_features,
    statistics_of,
    write_array,
    write_statistics,
)
from ebdiff_orchestrator.evaluation.work import image_files
from region_workers.data.decode import UnreadableImageError, open_image
from region_workers.data.store import Store
from region_workers.storage.integrity import file_digest
from schemas.digest import digest
from schemas.errors import user_error
from schemas.evaluation import FeatureJob, FolderImages, Measure, StoredImages
from schemas.limits import MAX_PIXELS
from schemas.plan import Plan

_VERSION = 1  # of how features and statistics are computed


@dataclass(frozen=True)
class Reference:
    """Reference images, or their statistics; `digest` says which, `num_images` is 0 where it is not known."""

    description: str
    digest: str
    num_images: int
    images: StoredImages | FolderImages | None
    file: Path
    measure: Measure

    def measured(self, workers: Workers, job: FeatureJob, with_features: bool) -> tuple[Statistics, Features | None]:
        """The statistics in `file`, and features of at most 10,000 images from beside it, if they are wanted.

        What is not there yet is computed of the images and put there. All features are made as the `job` makes its own,
        beside its folder, where all workers can write, and deleted once what is wanted is kept.
        """
        try:
            features = self._read_features() if with_features else None
            return read_statistics(self.file, self.measure), features
        except (OSError, ValueError):  # not computed yet, or damaged
            if self.images is None:
                raise
        folder = Path(job.folder).parent / f"reference-{self.digest[:16]}"
        update = {"folder": str(folder), "images": self.images, "num_images": self.num_images}
        make_features(workers, job.model_copy(update=update), "reference")
        statistics = statistics_of(folder, self.num_images, self.measure.extractor)
        write_statistics(self.file, statistics, self.measure)
        features = spread_features(folder, self.num_images, MOST_FEATURES) if with_features else None
        if features is not None:
            write_array(self._features_file, features)
        shutil.rmtree(folder)
        return statistics, features

    @property
    def _features_file(self) -> Path:
        return self.file.with_name(f"{self.file.stem}-features.npz")

    def _read_features(self) -> Features:
        """Raises OSError or ValueError if they are not there, whole."""
        count = min(self.num_images, MOST_FEATURES)
        return read_array(self._features_file, (count, *self.measure.extractor.shape))


def own_reference(plan: Plan, store: Store, cache_dir: Path, limit: int | None, measure: Measure) -> Reference:
    """The images or drawings that the run trains on, unflipped, or just the first `limit` of them."""
    total, noun = len(store), plan.data.kind
    if total < 2:
        expected = f"at least 2 {noun} to measure against, since a covariance needs two"
        raise user_error("data.path", plan.data.path, expected, "Give a --reference.")
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
        if mark_of(measure):
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
