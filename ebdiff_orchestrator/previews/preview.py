"""One preview: the newest networks put together as the run's own ensemble will be, and sampled from the same noise."""

import io
import resource
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ebdiff_orchestrator.ensemble.loading import ensemble_of
from ebdiff_orchestrator.ensemble.pictures import drawing_grid, image_grid, to_pil
from ebdiff_orchestrator.ensemble.samples import Samples, samples_of
from ebdiff_orchestrator.evaluation.wavelet import quick_measure
from ebdiff_orchestrator.run.previews import last_preview
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import inputs_of, outline_jobs, worker_job
from region_workers.data.drawing_store import ensure_data
from region_workers.data.drawings import raster
from region_workers.data.encode import on_threads
from region_workers.data.samples import DrawingSamples
from region_workers.data.store import ImageStore
from region_workers.data.vae import load_known_vae
from region_workers.networks.dense import load_verified
from region_workers.storage.checkpoint_files import (
    checkpoint_name,
    newest_step,
    state_key,
    ticket_artifacts,
    ticket_folder,
)
from region_workers.storage.durable import remove_leftovers, write_bytes, write_model
from region_workers.storage.integrity import finished_result
from region_workers.storage.locks import OwnFolder
from region_workers.storage.places import SCRATCH_FOLDER, cache_dir_of
from region_workers.storage.run_files import RunFiles
from region_workers.training.checkpoints import Checkpoint, newest_readable
from region_workers.training.family import build_dense, open_samples
from region_workers.training.trainer import weights_handed_on
from schemas.execution import PREVIEWS_FOLDER, PreviewRecord, PreviewSource, picture_key, record_key
from schemas.job import CHECKPOINTS_FOLDER, EXPERT_FOLDER, RESULT_FILE, TICKETS_FOLDER, DrawStage, TrainStage, WorkerJob
from schemas.manifest import Manifest
from schemas.model import LatentModelPlan, VectorModelPlan
from schemas.plan import Plan
from schemas.process import unix_time

_PIXELS_AT_ONCE = 1 << 16  # of one batch's images: a few dozen megabytes in a network of the paper's size


class RegionNetwork(NamedTuple):
    """A region's network in eval mode, on the CPU: what it is, and after how many steps of that."""

    network: nn.Module
    source: PreviewSource
    steps: int


def make_preview(location: str, owner: str = "") -> PreviewRecord | None:
    """Draw the next preview of the run and write it to the run's `previews`; None if a region has no checkpoint.

    One thread, on the CPU: equal checkpoints give equal bits. RunTakenOverError, and nothing is written, if the run has
    another owner than the claim `owner`.
    """
    began_s, run = time.monotonic(), RunDirectory(location, owner)
    manifest = run.read()
    cache = cache_dir_of(manifest.plan.workers.cache_dir)
    with OwnFolder(cache / SCRATCH_FOLDER, "preview-") as scratch, on_threads(1):
        networks = _newest_networks(RunFiles(run.location, scratch.path / "run"), manifest)
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


def _newest_networks(files: RunFiles, manifest: Manifest) -> dict[str, RegionNetwork] | None:
    """By region: its expert, or the dense network that still draws its ticket; None if a region has no whole one now.

    Nothing of the run is changed; of a run in an object store what is needed is fetched to the files' folder.
    """
    inputs = inputs_of(manifest)
    outlines = outline_jobs(manifest.plan, inputs)
    jobs = [worker_job(manifest.plan, outline, files.location, inputs) for outline in outlines]
    drawn_by = {job.draw.name: (job, job.draw) for job in jobs if job.draw is not None}
    dense: dict[str, RegionNetwork | None] = {}  # of a shared draw it is the network of several regions
    found = {}
    for train in (job.train for job in jobs if job.train is not None):
        job, draw = drawn_by[train.draw]
        files.fetch([f"{draw.name}/{RESULT_FILE}"])
        if finished_result(files.folder, draw) is not None:
            newest = _expert(files, train)
        else:
            if draw.name not in dense:
                dense[draw.name] = _dense(files, job, draw)
            newest = dense[draw.name]
        if newest is None:
            return None
        found[train.region] = newest
    return found


def _expert(files: RunFiles, train: TrainStage) -> RegionNetwork | None:
    """The finished expert, else the newest of its training; before the first checkpoint what its ticket gives it."""
    run = files.folder
    files.fetch_folder(f"{train.draw}/{TICKETS_FOLDER}/{train.region}")
    files.fetch([f"{train.name}/{RESULT_FILE}"])
    result = finished_result(run, train)
    if result is not None:
        place = f"{train.name}/{EXPERT_FOLDER}"
        files.fetch_folder(place)
        expert = [item for item in result.artifacts if item.path.startswith(f"{place}/")]
        network = load_verified(run / place, {Path(item.path).name: item.sha256 for item in expert})
        return RegionNetwork(network, "expert", result.steps)
    network = load_verified(ticket_folder(run, train) / EXPERT_FOLDER)
    if not _newest_step(files, train.name):
        return RegionNetwork(network, "expert", 0)
    checkpoint = _newest_checkpoint(files, train.name, state_key(train, ticket_artifacts(run, train)))
    return None if checkpoint is None else _as_of(checkpoint, network, "expert")


def _dense(files: RunFiles, job: WorkerJob, draw: DrawStage) -> RegionNetwork | None:
    files.fetch_folder(f"{draw.name}/{TICKETS_FOLDER}")  # a checkpoint goes with those drawn so far
    checkpoint = _newest_checkpoint(files, draw.name, draw.key)
    if checkpoint is None:
        return None
    drawings = None
    if isinstance(job.model, VectorModelPlan):
        drawings = open_samples(job, cache_dir_of(job.cache_dir), torch.device("cpu"), lambda *_: None).samples()
    assert drawings is None or isinstance(drawings, DrawingSamples)
    return _as_of(checkpoint, build_dense(job, drawings), "dense")


def _newest_step(files: RunFiles, stage: str) -> int:
    return newest_step(files.list_keys(f"{stage}/{CHECKPOINTS_FOLDER}"))


def _newest_checkpoint(files: RunFiles, stage: str, key: str) -> Checkpoint | None:
    folder = f"{stage}/{CHECKPOINTS_FOLDER}"
    if steps := _newest_step(files, stage):
        files.fetch_folder(f"{folder}/{checkpoint_name(steps)}")
    return newest_readable(files.folder / folder, key)


@torch.no_grad()
def _as_of(checkpoint: Checkpoint, network: nn.Module, source: PreviewSource) -> RegionNetwork:
    weights = weights_handed_on(checkpoint.tensors)
    for name, parameter in network.named_parameters():
        parameter.copy_(weights[name])
    return RegionNetwork(network.eval(), source, checkpoint.info.step)
