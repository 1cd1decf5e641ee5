"""Images to latents, a shard at a time: encoded the same however the work is shared out, and kept once written."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from region_workers.data.samples import checksums_of, npy_header
from region_workers.data.store import ImageStore, ensure_store
from region_workers.data.vae import encode, load_vae
from region_workers.storage.durable import write_model
from region_workers.storage.integrity import bytes_digest, read_if_whole
from schemas.data import ShardRecord, VaeInfo
from schemas.digest import digest, seed_from
from schemas.errors import RunFailed
from schemas.model import LatentModelPlan
from schemas.plan import DataPlan
from schemas.section import Section

# Raise it whenever the same image and VAE give other latents: stores of the older version are then built anew.
ENCODING_VERSION = 1
_BATCH_IMAGES = 16  # a constant, since a kernel may sum in another order for another batch
_HASHED_IMAGES = 64  # at a time

Latents = npt.NDArray[np.float16]
LatentShape = tuple[int, int, int, int, int]  # variants, images, channels, height, width


class EncodeJob(Section):
    """All that a worker needs to encode images of a store; it opens the images and the VAE itself."""

    model: LatentModelPlan
    data: DataPlan
    cache_dir: str
    images_digest: str
    vae: VaeInfo
    cpu_threads: int
    use_gpu: bool

    @property
    def key(self) -> str:
        """SHA-256 (hex) of what determines the latents."""
        vae, mirrored = {"vae": self.vae.digest, "posterior": self.vae.posterior}, self.data.random_flip
        return digest({"version": ENCODING_VERSION, "images": self.images_digest, "mirrored": mirrored, **vae})

    def shape(self, images: int) -> LatentShape:
        """Of the latents of so many images: with the mirrored ones in two variants."""
        side = self.data.resolution // self.model.latent_downscale
        return (2 if self.data.random_flip else 1, images, self.model.latent_channels, side, side)


def encode_shard(
    job: EncodeJob,
    start: int,
    stop: int,
    device: torch.device | None = None,
    progress: Callable[[int], None] | None = None,
    loaded: tuple[Any, VaeInfo] | None = None,
) -> Latents:
    """The scaled latents of the images [start, stop): float16 [V, stop - start, C, h, w]; V = 2 with mirrored ones.

    On `device`; default: this process's GPU, if there is one and the job may use it. `progress(images)` hears of the
    images done. `loaded`: the job's VAE, if it is at hand. Raises RunFailed if this machine's images or VAE are not
    those of the job, and for values that float16 does not hold.
    """
    cache_dir = Path(job.cache_dir)
    store = ImageStore.find(cache_dir, job.images_digest) or ensure_store(job.data, cache_dir)
    if store.digest != job.images_digest:
        raise _not_the_same("data.path", job.data.path, store.digest, job.images_digest)
    vae, info = loaded or load_vae(job.model, job.data.channels)
    if info.digest != job.vae.digest:
        raise _not_the_same("model.vae", job.model.vae, info.digest, job.vae.digest)
    if device is None:
        device = torch.device("cuda" if job.use_gpu and torch.cuda.is_available() else "cpu")
    vae, pieces = vae.to(device), []
    with torch.no_grad(), on_threads(job.cpu_threads), _same_bits():
        for first in range(start, stop, _BATCH_IMAGES):
            last = min(first + _BATCH_IMAGES, stop)
            pieces.append(_encode_batch(job, vae, store, range(first, last), device))
            if progress is not None:
                progress(last - start)
    latents_VnChw: Latents = np.concatenate(pieces, axis=1)
    return latents_VnChw


def _encode_batch(job: EncodeJob, vae: Any, store: ImageStore, images: range, device: torch.device) -> Latents:
    """Where the posterior is sampled, the noise is a function of the store's digest, the variant and the image's number
    alone, so that runs of any seed share their latents.
    """
    images_BCHW = store.samples().finish(torch.from_numpy(store.piece(images.start, images.stop)).to(device), None)
    latents = []
    for number, variant in enumerate([images_BCHW, images_BCHW.flip(3)] if job.data.random_flip else [images_BCHW]):
        stream = (store.digest, "posterior", number)
        generators = None
        if job.vae.posterior == "sample":  # an image's numbers, drawn on the CPU, are the same on every device
            generators = [torch.Generator("cpu").manual_seed(seed_from(*stream, index=image)) for image in images]
        latents.append(encode(vae, variant.contiguous(), generators))
    latents_VBChw = torch.stack(latents).half()
    if not bool(torch.isfinite(latents_VBChw).all()):
        raise RunFailed(
            f"the VAE gives latents beyond float16 for images {images.start} to {images.stop - 1} of the store. Set a "
            "smaller model.scaling_factor, or choose another VAE."
        )
    encoded: Latents = latents_VBChw.cpu().numpy()
    return encoded


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Within it, torch computes on so many threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _same_bits() -> Iterator[None]:
    """Within it, equal images give equal bits on the same kind of device; afterwards torch is set as it was."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


def _not_the_same(field: str, value: str, found: str, expected: str) -> RunFailed:
    return RunFailed(
        f"{field} = {value}: on this machine it is not what the driver has (digest {found[:12]}, expected "
        f"{expected[:12]}). Give every machine the same."
    )


class ShardFile:
    """The file of latents while it fills: preallocated, written a shard at a time, each shard with a record of its own.

    What is recorded survives a kill at any moment. `spans`: the images [start, stop) of each shard; `checksums`: of
    each image's latents, by variant, uint32 [V, N].
    """

    def __init__(self, path: Path, key: str, shape: LatentShape, shard_images: int) -> None:
        self.spans = [(first, min(first + shard_images, shape[1])) for first in range(0, shape[1], shard_images)]
        self.checksums = np.zeros(shape[:2], np.uint32)
        self._path, self._records, self._key = path, path.parent / "shards", key
        self._records.mkdir(parents=True, exist_ok=True)
        header = npy_header("<f2", shape)
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.write(header)
            file.truncate(len(header) + 2 * int(np.prod(shape)))
        self._latents = np.memmap(path, "<f2", "r", len(header), shape)

    def whole(self) -> dict[int, str]:
        """The shards that are there and whole, by number, with their digests; reads them all."""
        whole = {}
        for number, (start, stop) in enumerate(self.spans):
            record, latents_VnChw = self._record(number), self._latents[:, start:stop]
            if record is not None and _digest(latents_VnChw) == record.digest:
                whole[number] = record.digest
                self._note_checksums(start, latents_VnChw)
        return whole

    def write(self, number: int, latents_VnChw: Latents) -> str:
        """Put a shard into its place, durably, then its record; returns its digest."""
        start, stop = self.spans[number]
        assert latents_VnChw.shape == self._latents[:, start:stop].shape
        assert latents_VnChw.dtype == np.float16
        image_bytes = self._latents[0, :1].nbytes
        with self._path.open("r+b") as file:  # not through the memory map: on a full disk that would kill the process
            for variant, part in enumerate(latents_VnChw):
                file.seek(self._latents.offset + (variant * self._latents.shape[1] + start) * image_bytes)
                file.write(np.ascontiguousarray(part, dtype="<f2").data)
            file.flush()
            os.fsync(file.fileno())
        self._note_checksums(start, latents_VnChw)
        record = ShardRecord(key=self._key, start=start, stop=stop, digest=_digest(latents_VnChw))
        write_model(self._record_path(number), record)
        return record.digest

    def _note_checksums(self, start: int, latents_VnChw: Latents) -> None:
        for variant, part in enumerate(latents_VnChw):
            self.checksums[variant, start : start + len(part)] = checksums_of(np.ascontiguousarray(part, dtype="<f2"))

    def _record(self, number: int) -> ShardRecord | None:
        record = read_if_whole(ShardRecord, self._record_path(number))
        if record is not None and (record.key, record.start, record.stop) == (self._key, *self.spans[number]):
            return record
        return None  # not there, or of another version: the shard is made anew

    def _record_path(self, number: int) -> Path:
        return self._records / f"{number:05}.json"


def _digest(latents_VnChw: Latents) -> str:
    """SHA-256 (hex) of some images' latents, one variant after the other; memory stays flat."""
    starts = range(0, latents_VnChw.shape[1], _HASHED_IMAGES)
    pieces = (part[first : first + _HASHED_IMAGES] for part in latents_VnChw for first in starts)
    return bytes_digest(np.ascontiguousarray(piece, dtype="<f2").data for piece in pieces)
