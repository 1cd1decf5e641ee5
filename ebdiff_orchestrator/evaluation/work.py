"""What one worker of an evaluation does: make or read images, turn them to features, write them shard by shard."""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from pytorch_fid.fid_score import IMAGE_EXTENSIONS

from ebdiff_orchestrator.ensemble.loading import load_ensemble
from ebdiff_orchestrator.ensemble.pictures import Drawing, to_pil
from ebdiff_orchestrator.ensemble.samples import samples_of
from ebdiff_orchestrator.evaluation.extractors import load_extractor
from ebdiff_orchestrator.evaluation.inception import BATCH_IMAGES
from region_workers.data.decode import open_image
from region_workers.data.drawing_store import ensure_data
from region_workers.data.drawings import raster
from region_workers.data.store import ImageStore
from region_workers.storage.durable import replace_model, write_bytes, write_model
from region_workers.storage.integrity import file_digest, holds
from region_workers.storage.places import cache_dir_of
from region_workers.training.device import current_world, prepare_process
from region_workers.training.failures import message_for_people
from schemas.data import RasterPlan
from schemas.errors import RunFailed, UserError
from schemas.evaluation import FeatureJob, FolderImages, SampledImages, ShardRecord, StoredImages
from schemas.job import Progress
from schemas.process import unix_time

Images = np.ndarray[Any, Any]
OnProgress = Callable[[int, int], None]  # parts of the work that are done, of how many
ImageSource = Callable[[range, OnProgress], Images]  # the images of these numbers, uint8 [N, H, W, 1 or 3]

SHARD_IMAGES = 5 * BATCH_IMAGES  # whole batches, so that batches fall as pytorch-fid's do
IMAGES_FOLDER = "images"
_PROGRESS_EVERY_S = 1.0


@dataclass(frozen=True)
class Shard:
    """The images [first, first + count)."""

    index: int
    first: int
    count: int

    @property
    def images(self) -> range:
        return range(self.first, self.first + self.count)

    @property
    def name(self) -> str:
        return f"features-{self.index:05d}"


def shards_of(num_images: int) -> tuple[Shard, ...]:
    """The shards of `num_images` images: 250 each, the last one shorter; workers and batch size play no part."""
    starts = range(0, num_images, SHARD_IMAGES)
    return tuple(Shard(i, first, min(SHARD_IMAGES, num_images - first)) for i, first in enumerate(starts))


def features_file(folder: Path, shard: Shard) -> Path:
    """Float32 [count, features], or bytes of pixels, as numpy writes it."""
    return folder / f"{shard.name}.npy"


def record_file(folder: Path, shard: Shard) -> Path:
    """A `ShardRecord`; its being there says that the shard is finished."""
    return folder / f"{shard.name}.json"


def progress_file(folder: Path, shard: Shard) -> Path:
    """Where the shard stands, rewritten now and then."""
    return folder / f"progress-{shard.index:05d}.json"


def image_file(folder: Path, index: int) -> Path:
    return folder / IMAGES_FOLDER / f"{index:05d}.png"


def write_shard(folder: Path, shard: Shard, features: np.ndarray[Any, Any], making_s: float, device: str) -> None:
    """Write a shard durably: the features, then the record that vouches for them."""
    assert features.ndim == 2
    assert len(features) == shard.count
    assert features.dtype in (np.float32, np.uint8)

    encoded = io.BytesIO()
    np.save(encoded, features, allow_pickle=False)
    write_bytes(features_file(folder, shard), encoded.getvalue())
    sha256 = file_digest(features_file(folder, shard))
    record = ShardRecord(sha256=sha256, num_images=shard.count, making_s=making_s, device=device)
    write_model(record_file(folder, shard), record)
    progress_file(folder, shard).unlink(missing_ok=True)


def finished_record(job: FeatureJob, shard: Shard) -> ShardRecord | None:
    """The record of a shard that is there and whole, else None."""
    folder = Path(job.folder)
    try:
        record = ShardRecord.model_validate_json(record_file(folder, shard).read_bytes())
        whole = record.num_images == shard.count and holds(features_file(folder, shard), record.sha256)
    except (OSError, ValidationError):
        return None
    whole = whole and (not _keeps_images(job) or all(image_file(folder, index).is_file() for index in shard.images))
    return record if whole else None


def _keeps_images(job: FeatureJob) -> bool:
    return isinstance(job.images, SampledImages) and job.images.keep_images


def read_features(folder: Path, shard: Shard) -> np.ndarray[Any, Any]:
    """The features of a finished shard, [count, features]."""
    features: np.ndarray[Any, Any] = np.load(features_file(folder, shard), allow_pickle=False)
    return features


def remove_shards(folder: Path) -> None:
    """Delete the features, once what was computed of them is written; images stay."""
    for pattern in ("features-*", "progress-*"):
        for path in folder.glob(pattern):
            path.unlink()


def make_shards(job_json: str, indices: tuple[int, ...]) -> str | None:
    """Make the shards of these indices, those that are whole already left out; why it failed, if it did.

    Runs on a worker, with the threads of the plan and exact arithmetic, whatever the training's.
    """
    job = FeatureJob.model_validate_json(job_json)
    try:
        _make_shards(job, indices)
    except (RunFailed, UserError, torch.OutOfMemoryError, OSError) as error:
        memory = isinstance(error, torch.OutOfMemoryError)
        return "The device ran out of memory. Lower --batch-size." if memory else message_for_people(error)
    return None


def _make_shards(job: FeatureJob, indices: tuple[int, ...]) -> None:
    prepare_process(job.training.model_copy(update={"determinism": "exact"}))
    device = current_world(job.use_gpu).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    folder = Path(job.folder)
    extractor = load_extractor(job.measure.extractor, device)
    source = _image_source(job, device)
    shards = shards_of(job.num_images)
    for shard in (shards[index] for index in indices):
        if finished_record(job, shard) is not None:
            continue
        began = time.monotonic()
        progress = _ShardProgress(folder, shard)
        images_NHWC = source(shard.images, progress.making)
        making_s = time.monotonic() - began
        if _keeps_images(job):
            _write_pngs(folder, shard, images_NHWC)
        write_shard(folder, shard, extractor.features(images_NHWC, progress.features), making_s, name)


def _write_pngs(folder: Path, shard: Shard, images_NHWC: Images) -> None:
    for index, image_HWC in zip(shard.images, images_NHWC, strict=True):
        encoded = io.BytesIO()
        to_pil(image_HWC).save(encoded, "PNG")
        write_bytes(image_file(folder, index), encoded.getvalue())


class _ShardProgress:
    """Says in a file, now and then, how many images of a shard are as good as done: half for each of the two parts."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._folder, self._shard, self._written_at = folder, shard, time.monotonic()

    def making(self, done: int, total: int) -> None:
        self._write(0.5 * done / total)

    def features(self, done: int, total: int) -> None:
        self._write(0.5 + 0.5 * done / total)

    def _write(self, share: float) -> None:
        if time.monotonic() - self._written_at < _PROGRESS_EVERY_S:
            return
        self._written_at = time.monotonic()
        progress = Progress(stage=self._shard.name, step=int(self._shard.count * share), updated_at=unix_time())
        replace_model(progress_file(self._folder, self._shard), progress)


def _image_source(job: FeatureJob, device: torch.device) -> ImageSource:
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
