"""A run that counts as finished, made in a second: experts as they were initialised, and a manifest that says so."""

from pathlib import Path
from typing import Any

import torch

from ebdiff_orchestrator.ensemble import ensemble_of
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import ASSEMBLE
from region_workers.networks.dense import build_dense
from region_workers.storage.checkpoint_files import CHECKPOINT_FILE, CheckpointInfo
from region_workers.storage.durable import write_model
from region_workers.storage.integrity import artifact, file_digest, files_in
from schemas.job import EXPERT_FOLDER, RESULT_FILE, Artifact, Hardware, StageResult
from schemas.manifest import Evaluation, Manifest
from schemas.plan import Plan
from schemas.stage_names import train_stage_name


def expert_files(run_dir: Path, plan: Plan) -> dict[str, tuple[Artifact, ...]]:
    """What a manifest would record of the experts in a run directory, by region."""
    folders = {region.name: run_dir / train_stage_name(region) / EXPERT_FOLDER for region in plan.regions}
    return {name: tuple(artifact(run_dir, file) for file in files_in(folder)) for name, folder in folders.items()}


def finished_run(path: Path, plan: Plan, seed: int = 0) -> Manifest:
    """Write an ensemble of untrained networks to `path` and a manifest in which every stage is done."""
    torch.manual_seed(seed)
    experts = [build_dense(plan.model, plan.data).eval() for _ in plan.regions]
    if plan.model.family == "vector":
        for expert in experts:
            expert.register_to_config(length_counts=[0, 0, 1, 2, 3])  # else its trainer's: how long drawings are
    names = [region.name for region in plan.regions]
    ensemble_of(experts, plan.routes(), names, plan.diffusion, plan.sampling).save_pretrained(path / ASSEMBLE)
    return recorded_as_finished(path, plan)


def recorded_as_finished(path: Path, plan: Plan) -> Manifest:
    """Write the manifest of a run of the plan in which every stage is done, whose ensemble is there already."""
    files = tuple(artifact(path, file) for file in files_in(path / ASSEMBLE))
    directory = RunDirectory(path)
    manifest = Ledger.begin(directory, plan).manifest
    for record in manifest.stages.values():
        done = {"status": "done", "artifacts": files if record.name == ASSEMBLE else ()}
        manifest = manifest.with_stage(record.model_copy(update=done))
    return directory.write(manifest)


def end_stage(run_dir: Path, stage: str) -> None:
    """Write what a worker leaves beside the files of a stage that has ended."""
    files = tuple(artifact(run_dir, file) for file in files_in(run_dir / stage))
    hardware = Hardware(device="cpu", world_size=1, cpu_threads=1)
    times = {"started_at": 0, "finished_at": 0, "active_s": 0, "steps": 0}
    result = StageResult(stage=stage, key="", artifacts=files, hardware=hardware, metrics={}, **times)
    write_model(run_dir / stage / RESULT_FILE, result)


def save_checkpoint(file: Path, step: int) -> None:
    """Have a file, which lies in the folder of a checkpoint of so many steps, be all that is in it."""
    digests = {file.name: file_digest(file)}
    write_model(file.parent / CHECKPOINT_FILE, CheckpointInfo(key="", step=step, active_s=0, sha256=digests))


def an_evaluation(**fields: Any) -> Evaluation:
    """An evaluation of no ensemble in particular."""
    digests = {"key": "k", "ensemble_digest": "e", "inception_sha256": "i", "reference_digest": "r"}
    drawn = {"num_images": 50_000, "steps": 100, "seed": 0, "guidance_scale": 1.0, "reference_images": 50_000}
    took = {"seconds_per_image": 0.1, "wall_s": 10.0, "workers": 1, "at": 0.0}
    return Evaluation.model_validate({"fid": 1.0, **digests, **drawn, **took, **fields})
