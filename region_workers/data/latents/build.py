"""Encode an image store into the files of a latent store, a shard at a time, on as many workers as there are."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from region_workers.data.build import LABELS
from region_workers.data.build_lock import Report
from region_workers.data.checksums import CHECKSUMS, Checksums, write_array
from region_workers.data.labels import Labels
from region_workers.data.latents.encode import ENCODING_VERSION, ShardCall, encode_images, encode_shard
from region_workers.data.latents.shards import LATENTS, Latents, LatentShape, ShardFile
from region_workers.data.store import ImageStore
from region_workers.storage.durable import write_model
from schemas.digest import digest
from schemas.errors import RunFailed
from schemas.model import LatentModelPlan
from schemas.plan import DataPlan
from schemas.store import LatentInfo, VaeInfo

RunMany = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[tuple[int, Any]]]

INFO = "latents.json"
SHARD_IMAGES = 4096  # minutes of a GPU's work, some 100 MB; a multiple of the images encoded at once
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoding:
    """What is to be encoded, and by what."""

    model: LatentModelPlan
    data: DataPlan
    store: ImageStore
    vae: Any
    vae_info: VaeInfo
    cpu_threads: int
    device: torch.device | None

    @property
    def shape(self) -> LatentShape:
        """Variants, images, channels, height, width."""
        side = self.data.resolution // self.model.latent_downscale
        return (2 if self.data.random_flip else 1, len(self.store), self.model.latent_channels, side, side)

    @property
    def key(self) -> str:
        """SHA-256 (hex) of what determines the latents."""
        sampled = {"posterior": "sample"} if self.vae_info.posterior == "sample" else {}  # as it was before samples
        return digest(
            {
                "version": ENCODING_VERSION,
                "images": self.store.digest,
                "vae": self.vae_info.digest,
                "mirrored": self.data.random_flip,
                **sampled,
            }
        )


def build_latents(folder: Path, job: Encoding, cache_dir: Path, run_many: RunMany | None, report: Report) -> None:
    """Fill `folder` with the latents and labels of every image, in order, and with what they are.

    Goes on from the shards that are there and whole. Raises RunFailed if the disk has too little room.
    """
    _check_space(folder, job)
    (folder / INFO).unlink(missing_ok=True)  # of a store that was found damaged: it must not pass for whole meanwhile
    shards = ShardFile(folder, job.key, job.shape, SHARD_IMAGES)
    digests = shards.whole()
    missing = [number for number in range(len(shards.spans)) if number not in digests]
    done = len(job.store) - sum(stop - start for start, stop in (shards.spans[number] for number in missing))
    if digests:
        _log.info("%d of %d shards of latents are there already", len(digests), len(shards.spans))
    spans = [shards.spans[number] for number in missing]
    encoded = _here(job, spans, done, report) if run_many is None else _elsewhere(job, spans, cache_dir, run_many)
    for index, latents in encoded:
        digests[missing[index]] = shards.write(missing[index], latents)
        done += latents.shape[1]
        report(done, len(job.store))
    _finish(folder, job, [digests[number] for number in range(len(shards.spans))], shards.checksums.ravel())


def _here(job: Encoding, spans: list[tuple[int, int]], done: int, report: Report) -> Iterator[tuple[int, Latents]]:
    """Each shard, encoded in this process."""
    device = job.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae, total = job.vae.to(device), len(job.store)
    flips, threads = job.data.random_flip, job.cpu_threads
    for index, (start, stop) in enumerate(spans):
        progress = partial(_add, report, done, total)
        yield (
            index,
            encode_images(vae, job.store, (start, stop), flips, device, threads, job.vae_info.posterior, progress),
        )
        done += stop - start


def _add(report: Report, done: int, total: int, more: int) -> None:
    report(done + more, total)


def _elsewhere(
    job: Encoding, spans: list[tuple[int, int]], cache_dir: Path, run_many: RunMany
) -> Iterator[tuple[int, Latents]]:
    """Each shard as some worker sends it; only this process writes."""
    calls = [
        ShardCall(
            model=job.model,
            data=job.data,
            cache_dir=str(cache_dir),
            images_digest=job.store.digest,
            vae_digest=job.vae_info.digest,
            start=start,
            stop=stop,
            cpu_threads=job.cpu_threads,
            use_gpu=job.device is None or job.device.type == "cuda",
        )
        for start, stop in spans
    ]
    return run_many(encode_shard, [(call,) for call in calls])


def content_digest(shard_digests: Sequence[str], shape: LatentShape, labels: Labels | None) -> str:
    """A store's digest."""
    sha = hashlib.sha256("\n".join(shard_digests).encode())
    sha.update(str(shape).encode())
    if labels is not None:
        sha.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return sha.hexdigest()


def _finish(folder: Path, job: Encoding, digests: list[str], checksums: Checksums) -> None:
    labels = job.store.labels
    checksums_sha256 = write_array(folder / CHECKSUMS, checksums)
    labels_sha256 = None if labels is None else write_array(folder / LABELS, labels)
    info = LatentInfo(
        key=job.key,
        digest=content_digest(digests, job.shape, labels),
        shape=job.shape,
        latents_bytes=(folder / LATENTS).stat().st_size,
        checksums_sha256=checksums_sha256,
        labels_sha256=labels_sha256,
        shard_digests=tuple(digests),
        shard_images=SHARD_IMAGES,
        images_digest=job.store.digest,
        vae=job.vae_info,
        num_classes=job.store.num_classes,
        class_names=job.store.info.class_names,
    )
    write_model(folder / INFO, info)


def _check_space(folder: Path, job: Encoding) -> None:
    there = (folder / LATENTS).stat().st_blocks * 512 if (folder / LATENTS).exists() else 0
    needed_bytes = 2 * int(np.prod(job.shape)) - there
    free_bytes = shutil.disk_usage(folder.parent).free
    if needed_bytes > free_bytes:
        raise RunFailed(
            f"the latents of {job.data.path} need {needed_bytes / 1e9:.1f} GB more and {folder.parent} has "
            f"{free_bytes / 1e9:.1f} GB free. Make room, or set workers.cache_dir or EBDIFF_CACHE to another disk."
        )
