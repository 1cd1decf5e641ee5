"""The latent store: every image of an image store encoded once, on as many workers as there are."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from region_workers.data.encode import EncodeJob, ShardFile, encode_shard
from region_workers.data.samples import LatentSamples
from region_workers.data.store import INFO, SAMPLES, ImageStore, Store, check_space, ensure_store, write_info
from region_workers.data.vae import load_vae
from region_workers.storage.locks import Report
from schemas.data import LatentInfo
from schemas.errors import RunFailed, plan_error
from schemas.model import LatentModelPlan
from schemas.plan import DataPlan

RunMany = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[tuple[int, Any]]]

SHARD_IMAGES = 4096  # minutes of a GPU's work, some 100 MB; a multiple of the images encoded at once
_log = logging.getLogger(__name__)


class LatentStore(Store):
    """Scaled latents: `array` float16 [V, N, C, h, w], V = 2 with those of the mirrored images."""

    what, place, stall_limit_s = "latent", "latents", 7200.0  # a shard takes minutes on a GPU, an hour on a few cores
    dtype, info_type = np.float16, LatentInfo
    info: LatentInfo

    def samples(self) -> LatentSamples:
        return LatentSamples(self.array, self.labels, self._checksums)


def find_latents(model: LatentModelPlan, data: DataPlan, store: ImageStore, cache_dir: Path) -> LatentStore | None:
    """The finished latents of the store's images, or None if they are still to be encoded. Raises PlanError."""
    return LatentStore.of_key(cache_dir, _job(model, data, store, cache_dir).key)


def ensure_latents(
    model: LatentModelPlan,
    data: DataPlan,
    store: ImageStore,
    cache_dir: Path,
    run_many: RunMany | None = None,
    report: Report | None = None,
    *,
    cpu_threads: int = 1,
    device: torch.device | None = None,
) -> LatentStore:
    """The latents of the store's images, encoded now where they are missing; once though several processes ask.

    `run_many(function, calls)` gives (index, result) of `function(*call)` in any order, on other processes or
    machines, of which each needs the images and the VAE but no shared folder; None: all in this process, on `device`
    (default: the GPU if there is one). Shards that an earlier, killed call left whole are not encoded again.
    `report(done, total)` counts images. Raises PlanError if images or VAE do not fit the plan, RunFailed for too
    little room on the disk and for an encoder that shows no progress.
    """
    job = _job(model, data, store, cache_dir, cpu_threads, device)
    return LatentStore.built_once(cache_dir, job.key, partial(_build, job, store, run_many, device), report)


def open_latents(
    model: LatentModelPlan,
    data: DataPlan,
    cache_dir: Path,
    expected_digest: str,
    *,
    cpu_threads: int = 1,
    device: torch.device | None = None,
    report: Report | None = None,
) -> LatentStore:
    """The latents that the driver made or found: this machine's, else encoded here. Raises RunFailed if they differ."""
    found = LatentStore.find(cache_dir, expected_digest)
    if found is not None:
        return found
    store = ensure_store(data, cache_dir, report)
    made = ensure_latents(model, data, store, cache_dir, None, report, cpu_threads=cpu_threads, device=device)
    if made.digest != expected_digest:
        raise RunFailed(
            f"The latents of data.path = {data.path} under model.vae = {model.vae} are not those the run began with "
            f"(digest {made.digest[:12]}, expected {expected_digest[:12]}). Restore images and VAE, use the same kind "
            "of device, or copy the folder of latents from the cache that has them; or start a new run."
        )
    return made


def _job(
    model: LatentModelPlan,
    data: DataPlan,
    store: ImageStore,
    cache_dir: Path,
    cpu_threads: int = 1,
    device: torch.device | None = None,
) -> EncodeJob:
    if data.resolution % model.latent_downscale:
        expected = f"a multiple of model.latent_downscale = {model.latent_downscale}"
        raise plan_error("data.resolution", data.resolution, expected, "Change one of the two.")
    return EncodeJob(
        model=model,
        data=data,
        cache_dir=str(cache_dir),
        images_digest=store.digest,
        vae=load_vae(model, data.channels)[1],
        cpu_threads=cpu_threads,
        use_gpu=device is None or device.type == "cuda",
    )


def _build(
    job: EncodeJob,
    store: ImageStore,
    run_many: RunMany | None,
    device: torch.device | None,
    folder: Path,
    report: Report,
) -> None:
    """Fill `folder` with the latents and labels of every image; goes on from the shards that are there and whole."""
    shape, total = job.shape(len(store)), len(store)
    check_space(folder, 2 * int(np.prod(shape)), f"the latents of {job.data.path}")
    (folder / INFO).unlink(missing_ok=True)  # of a store that was found damaged: it must not pass for whole meanwhile
    shards = ShardFile(folder / SAMPLES, job.key, shape, SHARD_IMAGES)
    digests = shards.whole()
    missing = [number for number in range(len(shards.spans)) if number not in digests]
    done = sum(stop - start for number, (start, stop) in enumerate(shards.spans) if number in digests)
    if digests:
        _log.info("%d of %d shards of latents are there already", len(digests), len(shards.spans))

    def encode_here(calls: list[tuple[EncodeJob, int, int]]) -> Iterator[tuple[int, Any]]:
        vae = load_vae(job.model, job.data.channels) if calls else None
        for index, call in enumerate(calls):
            yield index, encode_shard(*call, device, lambda more: report(done + more, total), vae)

    calls = [(job, *shards.spans[number]) for number in missing]
    for index, latents in encode_here(calls) if run_many is None else run_many(encode_shard, calls):
        digests[missing[index]] = shards.write(missing[index], latents)
        done += latents.shape[1]
        report(done, total)
    sha = hashlib.sha256("\n".join(digests[number] for number in range(len(shards.spans))).encode())
    classes = store.info.model_dump(include={"num_classes", "class_names"})
    more = {"images_digest": store.digest, "vae": job.vae, **classes}
    write_info(LatentStore, folder, job.key, shape, sha, shards.checksums.ravel(), store.labels, **more)
