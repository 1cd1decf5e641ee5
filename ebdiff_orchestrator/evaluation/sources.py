"""Where the images of an evaluation come from: an ensemble, the run's own data, or a folder; drawings are rendered."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_fid.fid_score import IMAGE_EXTENSIONS

from ebdiff_orchestrator.ensemble.loading import load_ensemble
from ebdiff_orchestrator.ensemble.pictures import Drawing
from ebdiff_orchestrator.ensemble.samples import samples_of
from region_workers.data.decode import open_image
from region_workers.data.drawing_store import ensure_data
from region_workers.data.drawings import raster
from region_workers.data.store import ImageStore
from region_workers.storage.places import cache_dir_of
from schemas.data import RasterPlan
from schemas.errors import RunFailed
from schemas.evaluation import FeatureJob, FolderImages, SampledImages, StoredImages

Images = np.ndarray[Any, Any]
OnProgress = Callable[[int, int], None]  # parts of the work that are done, of how many
ImageSource = Callable[[range, OnProgress], Images]  # the images of these numbers, uint8 [N, H, W, 1 or 3]


def image_source(job: FeatureJob, device: torch.device) -> ImageSource:
    """The job's images. RunFailed if this node has not what the driver has."""
    if isinstance(job.images, SampledImages):
        return _sampled(job.images, job.measure.raster, device)
    return _stored(job.images, job.measure.raster) if isinstance(job.images, StoredImages) else _of_folder(job.images)


def image_files(folder: Path) -> list[Path]:
    """The images in a folder, as pytorch-fid lists them."""
    return sorted(file for extension in IMAGE_EXTENSIONS for file in folder.glob(f"*.{extension}"))


def _sampled(how: SampledImages, rendered: RasterPlan | None, device: torch.device) -> ImageSource:
    pipeline = load_ensemble(how.ensemble, device=device)
    guidance = None if pipeline.num_classes is None else how.guidance_scale

    def images(numbers: range, on_progress: OnProgress) -> Images:
        size, seed, first = how.batch_size, how.seed, numbers.start
        samples = samples_of(pipeline, len(numbers), seed, how.steps, size, on_progress, first, guidance_scale=guidance)
        return samples if isinstance(samples, np.ndarray) else _rendered(samples, rendered)

    return images


def _rendered(drawings: Sequence[Drawing], how: RasterPlan | None) -> Images:
    assert how is not None, "the measure of drawings says how they are rendered"
    return np.stack([raster(drawing, how) for drawing in drawings])


def _stored(images: StoredImages, rendered: RasterPlan | None) -> ImageSource:
    store = ensure_data(images.data, cache_dir_of(images.cache_dir))
    if store.digest != images.store_digest:
        raise RunFailed(
            f"data.path = {images.data.path}: the {images.data.kind} on this node are not the driver's "
            f"(digest {store.digest[:12]}, expected {images.store_digest[:12]}). Make them the same."
        )
    if isinstance(store, ImageStore):
        return lambda numbers, _: store.piece(numbers.start, numbers.stop)
    assert rendered is not None, "the measure of drawings says how they are rendered"
    return lambda numbers, _: store.piece(numbers.start, numbers.stop, rendered)


def _of_folder(references: FolderImages) -> ImageSource:
    files = image_files(Path(references.folder))

    def images(numbers: range, on_progress: OnProgress) -> Images:
        chosen = files[numbers.start : numbers.stop]
        if len(chosen) != len(numbers):
            raise RunFailed(f"A folder of reference images lost files ({len(files)} left), or is not shared.")
        return np.stack([_read_image(file, references.max_pixels) for file in chosen])

    return images


def _read_image(file: Path, max_pixels: int) -> Images:
    try:
        with open_image(str(file), max_pixels) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:
        remedy = "Remove or replace it, then the same command goes on."
        raise RunFailed(f"--reference: {file} does not read as an image ({error}). {remedy}") from error
