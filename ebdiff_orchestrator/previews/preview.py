"""One preview: the newest networks put together as the run's own ensemble will be, and sampled from the same noise."""

from __future__ import annotations

import io
import resource
import time
from pathlib import Path

import numpy as np

from ebdiff_orchestrator.ensemble.drawings import drawing_grid
from ebdiff_orchestrator.ensemble.images import image_grid, to_pil
from ebdiff_orchestrator.ensemble.samples import Samples, samples_of
from ebdiff_orchestrator.ensemble.saving import ensemble_of
from ebdiff_orchestrator.previews.networks import RegionNetwork, newest_networks
from ebdiff_orchestrator.run.previews import last_preview
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.data.drawing_store import ensure_data
from region_workers.data.encode import on_threads
from region_workers.data.rasters import raster
from region_workers.data.store import ImageStore
from region_workers.data.vae import load_known_vae
from region_workers.storage.durable import remove_leftovers, write_bytes, write_model
from region_workers.storage.locks import OwnFolder
from region_workers.storage.places import SCRATCH_FOLDER, cache_dir_of
from region_workers.storage.run_files import RunFiles
from schemas.manifest import Manifest
from schemas.model import LatentModelPlan
from schemas.plan import Plan
from schemas.previews import PREVIEWS_FOLDER, PreviewRecord, picture_key, record_key
from schemas.process import unix_time

_PIXELS_AT_ONCE = 1 << 16  # of one batch's images: a few dozen megabytes in a network of the paper's size


def make_preview(location: str, owner: str = "") -> PreviewRecord | None:
    """Draw the next preview of the run and write it to the run's `previews`; None if a region has no checkpoint.

    One thread, on the CPU: equal checkpoints give equal bits. RunTakenOverError, and nothing is written, if the run has
    another owner than the claim `owner`.
    """
    began_s, run = time.monotonic(), RunDirectory(location, owner)
    manifest = run.read()
    cache = cache_dir_of(manifest.plan.workers.cache_dir)
    with OwnFolder(cache / SCRATCH_FOLDER, "preview-") as scratch, on_threads(1):
        networks = newest_networks(RunFiles(run.location, scratch.path / "run"), manifest)
        if networks is None:
            return None
        samples = _samples(manifest, networks)
        measures = _measures(manifest.plan, samples, cache)
    with run.fenced():
        return _write(run, samples, measures, manifest, networks, began_s)


def _samples(manifest: Manifest, networks: dict[str, RegionNetwork]) -> Samples:
    plan, how, vae = manifest.plan, manifest.plan.previews, None
    assert how is not None
    if isinstance(plan.model, LatentModelPlan):
        vae = load_known_vae(plan.model, plan.data.channels, manifest.vae_digest)
    experts = [networks[region.name].network for region in plan.regions]
    names = [region.name for region in plan.regions]
    pipeline = ensemble_of(experts, plan.routes(), names, plan.diffusion, plan.sampling, vae)
    at_once = how.num_images if plan.data.drawings else max(1, _PIXELS_AT_ONCE // plan.data.resolution**2)
    return samples_of(pipeline, how.num_images, plan.seed, how.steps, min(at_once, how.num_images))


def _measures(plan: Plan, samples: Samples, cache: Path) -> dict[str, float]:
    """What the plan wants measured, of the preview's images against as many of the data, evenly spread over them."""
    assert plan.previews is not None
    name = plan.previews.measure
    if name is None:
        return {}
    from ebdiff_orchestrator.evaluation.wavelet import quick_measure

    store = ensure_data(plan.data, cache)
    numbers = np.linspace(0, len(store), min(len(samples), len(store)), endpoint=False).astype(int).tolist()
    if isinstance(store, ImageStore):
        images, reference = samples, [store.piece(number, number + 1) for number in numbers]
    else:
        assert plan.data.raster is not None
        images = np.stack([raster(drawing, plan.data.raster) for drawing in samples])
        reference = [store.piece(number, number + 1, plan.data.raster) for number in numbers]
    return {name: quick_measure(np.asarray(images), np.concatenate(reference))}


def _write(
    run: RunDirectory,
    samples: Samples,
    measures: dict[str, float],
    manifest: Manifest,
    networks: dict[str, RegionNetwork],
    began_s: float,
) -> PreviewRecord:
    """The picture, then the record, which says that it is whole."""
    assert manifest.plan.previews is not None
    usage = resource.getrusage(resource.RUSAGE_SELF)
    record = PreviewRecord(
        number=last_preview(run) + 1,
        unix_s=unix_time(),
        steps={name: network.steps for name, network in networks.items()},
        source={name: network.source for name, network in networks.items()},
        num_images=manifest.plan.previews.num_images,
        sampling_steps=manifest.plan.previews.steps,
        seconds=time.monotonic() - began_s,
        processor_s=usage.ru_utime + usage.ru_stime,
        measures=measures,
    )
    png = io.BytesIO()
    grid_HWC = image_grid(samples) if isinstance(samples, np.ndarray) else drawing_grid(samples)
    to_pil(grid_HWC).save(png, "PNG")
    picture, beside = picture_key(record.number), record_key(record.number)
    remove_leftovers(run.path / PREVIEWS_FOLDER)
    write_bytes(run.path / picture, png.getvalue())
    run.publish(picture)
    write_model(run.path / beside, record)
    run.publish(beside)
    return record
