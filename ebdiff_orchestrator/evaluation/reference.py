"""What a run's images are measured against: its own data, a folder of images, or statistics made before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ebdiff_orchestrator.evaluation.shards import remove_shards
from ebdiff_orchestrator.evaluation.statistics import Statistics, read_statistics, shard_statistics, write_statistics
from ebdiff_orchestrator.evaluation.work import image_files
from region_workers.data.decode import UnreadableImageError, open_image
from region_workers.data.store import ImageStore
from region_workers.storage.integrity import file_digest
from schemas.digest import digest
from schemas.errors import UserError, problem
from schemas.evaluation import FolderImages, StoredImages
from schemas.limits import MAX_PIXELS
from schemas.plan import Plan

_VERSION = 1  # of how features and statistics are computed

MakeFeatures = Callable[[Path, StoredImages | FolderImages, int], None]


@dataclass(frozen=True)
class Reference:
    """Reference images, or their statistics; `digest` says which, `num_images` is 0 where it is not known."""

    description: str
    digest: str
    num_images: int
    images: StoredImages | FolderImages | None
    file: Path

    def statistics(self, work_dir: Path, make_features: MakeFeatures) -> Statistics:
        """The statistics in `file`; if they are not there yet, they are computed of the images and put there.

        Features are made under `work_dir`, where all workers can write, and deleted once the statistics are kept.
        """
        if self.images is None:
            return read_statistics(self.file)
        try:
            return read_statistics(self.file)
        except (OSError, ValueError):  # not computed yet, or damaged
            folder = work_dir / f"reference-{self.digest[:16]}"
            make_features(folder, self.images, self.num_images)
            statistics = shard_statistics(folder, self.num_images)
            write_statistics(self.file, statistics)
            remove_shards(folder)
            folder.rmdir()
            return statistics


def own_reference(plan: Plan, store: ImageStore, cache_dir: Path, limit: int | None, inception: str) -> Reference:
    """The images that the run trains on, unflipped, or just the first `limit` of them."""
    total = len(store)
    if limit is not None and not 2 <= limit <= total:
        expected = f"2 to {total}, the images of the run's data"
        raise UserError(problem("--reference-images", limit, expected, "Leave it out to use them all."))
    count = limit or total
    which = "the run's data" if count == total else f"only the first {count:,} of the"
    key = digest({"version": _VERSION, "images": store.digest, "count": count, "inception": inception})
    images = StoredImages(data=plan.data, cache_dir=plan.workers.cache_dir, store_digest=store.digest)
    description = f"{which} ({total:,} images)" if count == total else f"{which} {total:,} images of the run's data"
    return Reference(description, key, count, images, _cached(cache_dir, key))


def given_reference(path: Path, cache_dir: Path, inception: str, max_pixels: int = MAX_PIXELS) -> Reference:
    """A folder of images of at most `max_pixels`, or an .npz of statistics as pytorch-fid writes it.

    UserError if it is neither.
    """
    path = path.expanduser().resolve()
    if path.is_dir():
        files = image_files(path)
        if len(files) < 2:
            raise UserError(problem("--reference", path, "a folder with at least 2 images", "Check the path."))
        _check_sizes(files, max_pixels)
        contents = [[file.name, file_digest(file)] for file in files]
        key = digest({"version": _VERSION, "folder": contents, "inception": inception})
        description = f"{path.name}/ ({len(files):,} images)"
        images = FolderImages(folder=str(path), max_pixels=max_pixels)
        return Reference(description, key, len(files), images, _cached(cache_dir, key))
    try:
        if path.exists() and not path.is_file():  # to read a pipe would wait for its other end
            raise ValueError("it is no regular file")
        statistics = read_statistics(path)
    except (OSError, ValueError) as error:
        expected = "a folder of images, or an .npz with mu and sigma, as `python -m pytorch_fid --save-stats` writes"
        raise UserError(problem("--reference", path, expected, f"Check the file ({error}).")) from None
    count = f"{statistics.num_images:,} images" if statistics.num_images else "images not counted"
    return Reference(f"{path.name} ({count})", file_digest(path), statistics.num_images, None, path)


def _check_sizes(files: list[Path], max_pixels: int) -> None:
    """Raise UserError unless all are images of one size, as pytorch-fid demands."""
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        try:
            with open_image(str(file), max_pixels) as image:
                sizes.setdefault(image.size, file)
        except UnreadableImageError as error:
            raise UserError(
                problem("--reference", file, "an image that can be read", f"Remove it ({error}).")
            ) from None
    if len(sizes) > 1:
        found = ", ".join(f"{file.name} of {width}x{height}" for (width, height), file in sizes.items())
        raise UserError(problem("--reference", files[0].parent, "images of one size", f"Resize them: {found}."))


def _cached(cache_dir: Path, key: str) -> Path:
    return cache_dir / "fid" / f"{key[:16]}.npz"
