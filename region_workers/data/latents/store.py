"""The latent store: every image of an image store encoded once, memory-mapped, shared by all workers of a machine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from region_workers.data.build_lock import Report, build_lock
from region_workers.data.checksums import CHECKSUMS, Checksums, checked, map_array, opening, read_array
from region_workers.data.labels import Labels
from region_workers.data.latents.build import INFO, Encoding, RunMany, build_latents, content_digest
from region_workers.data.latents.shards import LATENTS, shard_digest, shard_spans
from region_workers.data.latents.vae import load_vae
from region_workers.data.samples import LatentSamples
from region_workers.data.store import ImageStore, cache_folder, check_writable, ensure_store, read_labels, silent
from schemas.errors import RunFailed, plan_error
from schemas.model import LatentModelPlan
from schemas.plan import DataPlan
from schemas.store import LatentInfo

_FOLDER = "latents"
_STALL_LIMIT_S = 7200.0  # a shard takes minutes on a GPU, an hour on a few cores
_log = logging.getLogger(__name__)


class LatentStore:
    """Scaled latents: `latents` float16 [V, N, C, h, w], V = 2 with the mirrored images; `labels` int64 [N] or None."""

    def __init__(
        self,
        folder: Path,
        info: LatentInfo,
        latents: np.memmap[Any, np.dtype[np.float16]],
        checksums: Checksums,
        labels: Labels | None,
    ) -> None:
        self.folder = folder
        self.info = info
        self.latents = latents
        self._checksums = checksums
        self.labels = labels

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The store in `folder`, without reading its latents. Raises RunFailed if it is missing or not whole."""
        with opening(folder, "latent store", INFO):
            info = LatentInfo.model_validate_json((folder / INFO).read_bytes())
            latents = map_array(folder / LATENTS, info.latents_bytes, INFO)
            if latents.shape != info.shape or latents.dtype != np.float16:
                raise ValueError(f"{LATENTS} holds {latents.dtype} {latents.shape}, not {info.dtype} {info.shape}")
            rows = info.shape[0] * info.shape[1]
            checksums = read_array(folder / CHECKSUMS, np.uint32, rows, info.checksums_sha256)
            labels = read_labels(folder, info.num_classes, info.shape[1], info.labels_sha256)
        return cls(folder, info, latents, checksums, labels)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the latents, of their shape, and of the labels if there are any."""
        return self.info.digest

    @property
    def num_classes(self) -> int | None:
        """The image store's; None without labels."""
        return self.info.num_classes

    def __len__(self) -> int:
        return self.info.shape[1]

    def samples(self) -> LatentSamples:
        """The latents as samples to be served in batches; RunFailed where one is not what was encoded."""
        return LatentSamples(self.latents, lambda read: checked(read, self._checksums, self.folder))

    def verify(self) -> None:
        """Read every latent and raise RunFailed unless the digest of latents and labels is the recorded one."""
        digests = [shard_digest(self.latents, span) for span in shard_spans(len(self), self.info.shard_images)]
        if content_digest(digests, self.info.shape, self.labels) != self.digest:
            raise RunFailed(
                f"the latents in {self.folder} have changed since they were written. Delete its {INFO}: the "
                "shards that are whole are kept, the others encoded anew."
            )


def find_latents(model: LatentModelPlan, data: DataPlan, store: ImageStore, cache_dir: Path) -> LatentStore | None:
    """The finished latents of the store's images, or None if they are still to be encoded. Raises PlanError."""
    job = _encoding(model, data, store)
    return _opened(_folder(cache_dir, job), job.key)


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
    stall_limit_s: float = _STALL_LIMIT_S,
) -> LatentStore:
    """The latents of the store's images, encoded now where they are missing; once though several processes ask.

    `run_many(function, calls)` gives (index, result) of `function(*call)` in any order, on other processes or
    machines, of which each needs the images and the VAE but no shared folder; None: all in this process, on `device`
    (default: the GPU if there is one). Shards that an earlier, killed call left whole are not encoded again.
    `report(done, total)` counts images. Raises PlanError if images or VAE do not fit the plan, RunFailed for too
    little room on the disk and for an encoder without progress in `stall_limit_s` seconds.
    """
    job = _encoding(model, data, store, cpu_threads, device)
    folder = _folder(cache_dir, job)
    found = _opened(folder, job.key)
    if found is not None:
        return found
    check_writable(folder.parent)
    with build_lock(folder.parent / f"{folder.name}.lock", report or silent, stall_limit_s, "latent") as noted_report:
        found = _opened(folder, job.key)
        if found is None:
            build_latents(folder, job, cache_dir, run_many, noted_report)
            found = LatentStore.open(folder)
    return found


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
    found = _find(cache_dir, expected_digest)
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


def _opened(folder: Path, key: str) -> LatentStore | None:
    if not (folder / INFO).exists():
        return None
    try:
        store = LatentStore.open(folder)
    except RunFailed as error:
        _log.warning("%s", error)
        return None
    return store if store.info.key == key else None


def _find(cache_dir: Path, expected_digest: str) -> LatentStore | None:
    for path in sorted((cache_dir / _FOLDER).glob(f"*/{INFO}")):
        try:
            store = LatentStore.open(path.parent)
        except RunFailed as error:
            _log.info("passed over %s", error)
            continue
        if store.digest == expected_digest:
            return store
    return None


def _encoding(
    model: LatentModelPlan,
    data: DataPlan,
    store: ImageStore,
    cpu_threads: int = 1,
    device: torch.device | None = None,
) -> Encoding:
    if data.resolution % model.latent_downscale:
        expected = f"a multiple of model.latent_downscale = {model.latent_downscale}"
        raise plan_error("data.resolution", data.resolution, expected, "Change one of the two.")
    vae, vae_info = load_vae(model, data.channels)
    return Encoding(model, data, store, vae, vae_info, cpu_threads, device)


def _folder(cache_dir: Path, job: Encoding) -> Path:
    return cache_folder(cache_dir, _FOLDER) / job.key[:16]
