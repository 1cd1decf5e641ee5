"""The newest network of each region of a run that still trains, with the weights that it would hand on now."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ebdiff_orchestrator.run.stages import inputs_of, outline_jobs, worker_job
from region_workers.data.samples import DrawingSamples
from region_workers.networks.dense import load_verified
from region_workers.storage.checkpoint_files import (
    checkpoint_name,
    newest_step,
    state_key,
    ticket_artifacts,
    ticket_folder,
)
from region_workers.storage.integrity import finished_result
from region_workers.storage.places import cache_dir_of
from region_workers.storage.run_files import RunFiles
from region_workers.training.checkpoints import Checkpoint, newest_readable
from region_workers.training.family import build_dense, open_samples
from region_workers.training.trainer import weights_handed_on
from schemas.job import CHECKPOINTS_FOLDER, EXPERT_FOLDER, RESULT_FILE, TICKETS_FOLDER, DrawStage, TrainStage, WorkerJob
from schemas.manifest import Manifest
from schemas.model import VectorModelPlan
from schemas.previews import Source


class RegionNetwork(NamedTuple):
    """A region's network in eval mode, on the CPU: what it is, and after how many steps of that."""

    network: nn.Module
    source: Source
    steps: int


def newest_networks(files: RunFiles, manifest: Manifest) -> dict[str, RegionNetwork] | None:
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
def _as_of(checkpoint: Checkpoint, network: nn.Module, source: Source) -> RegionNetwork:
    weights = weights_handed_on(checkpoint.tensors)
    for name, parameter in network.named_parameters():
        parameter.copy_(weights[name])
    return RegionNetwork(network.eval(), source, checkpoint.info.step)
