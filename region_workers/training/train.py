"""The train stage: one expert, from its ticket's inherited weights, with a fresh optimizer, on its region."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import nn

from region_workers.networks.dense import load_verified
from region_workers.storage.durable import write_folder
from region_workers.storage.integrity import DamagedFileError, artifact, check_sealed
from region_workers.storage.tables import Row, write_metrics
from region_workers.training.checkpoints import Checkpoints
from region_workers.training.device import World
from region_workers.training.family import ModelFamily
from region_workers.training.randomness import StepRandomness
from region_workers.training.reporter import StageReporter, stopped_at
from region_workers.training.results import files_in, publish
from region_workers.training.timesteps import TimestepSampler
from region_workers.training.trainer import Trainer
from schemas.digest import digest
from schemas.errors import RunFailed
from schemas.job import (
    CHECKPOINTS_FOLDER,
    EXPERT_FOLDER,
    METRICS_FILE,
    TICKET_FILE,
    TICKETS_FOLDER,
    WEIGHTS_FILE,
    Artifact,
    TrainStage,
    WorkerJob,
)


def train(job: WorkerJob, stage: TrainStage, family: ModelFamily, randomness: StepRandomness, world: World) -> None:
    """Train to `stage.steps` updates from the last good checkpoint, then publish the expert (EMA weights)."""
    run_dir = Path(job.run_dir)
    folder = run_dir / stage.name
    _check_ticket(_ticket_folder(run_dir, stage))
    inputs = ticket_artifacts(run_dir, stage)
    expert = load_verified(_ticket_folder(run_dir, stage) / EXPERT_FOLDER)
    sampler = TimestepSampler(stage.timesteps, job.training.timesteps, job.diffusion, world.device)
    trainer = Trainer(expert, family, randomness, sampler, job.training, world)
    reporter = StageReporter(job, stage.name, stage.key, stage.steps, world, job.training.learning_rate)
    key, keep = state_key(stage, inputs), job.checkpointing.keep
    place = folder / CHECKPOINTS_FOLDER
    with Checkpoints(place, key, keep, world.on_deleted, job.attempt, job.owner) as checkpoints:
        _train(job, stage, trainer, reporter, checkpoints, world)
    if world.is_rank_zero:
        _write_expert(folder, expert, trainer)
        write_metrics(folder / METRICS_FILE, reporter.metrics)
        files = [*files_in(folder / EXPERT_FOLDER), folder / METRICS_FILE]
        publish(job, reporter, world, trainer.step, files, _last_loss(reporter.metrics), inputs)
    world.barrier()


def _train(
    job: WorkerJob, stage: TrainStage, trainer: Trainer, reporter: StageReporter, checkpoints: Checkpoints, world: World
) -> None:
    """The loop, from the last good checkpoint to the last step; StopRequestedError once it has saved to stop."""
    checkpoint = checkpoints.newest_good(world, stage.steps)
    reporter.note(checkpoints.passed_over)
    if checkpoint is None:
        reporter.begin(0, [], 0.0)
    else:
        trainer.load_state_tensors(checkpoint.tensors, checkpoint.info.step)
        reporter.begin(checkpoint.info.step, checkpoint.metrics, checkpoint.info.active_s)

    while trainer.step < stage.steps:
        trainer.train_step()
        stop = reporter.after_step(trainer)
        due = trainer.step % job.checkpointing.interval_steps == 0 or trainer.step == stage.steps
        if due or stop:
            trainer.check_finite()
            if world.is_rank_zero:
                checkpoints.save(trainer.step, reporter.active_s, trainer.state_tensors(), reporter.metrics)
            world.barrier()
            stop = stop or reporter.growth_requested()
        if stop and trainer.step < stage.steps:
            checkpoints.wait()
            world.barrier()
            reporter.announce("stopped", trainer.step)
            raise stopped_at(trainer.step)
    checkpoints.wait()


def ticket_artifacts(run_dir: Path, stage: TrainStage) -> tuple[Artifact, ...]:
    """The files that the training begins with: its ticket and the inherited weights."""
    ticket = _ticket_folder(run_dir, stage)
    return tuple(artifact(run_dir, path) for path in (ticket / TICKET_FILE, ticket / EXPERT_FOLDER / WEIGHTS_FILE))


def state_key(stage: TrainStage, inputs: tuple[Artifact, ...]) -> str:
    """The key of the training's checkpoints: they belong to the very ticket that it began with."""
    return digest([stage.key, *(item.sha256 for item in inputs)])


def _ticket_folder(run_dir: Path, stage: TrainStage) -> Path:
    return run_dir / stage.draw / TICKETS_FOLDER / stage.region


def _check_ticket(folder: Path) -> None:
    try:
        check_sealed(folder, own_seal=True)
    except DamagedFileError as error:
        raise RunFailed(
            f"{error.path} is missing or not what the draw wrote. Go on with `ebdiff resume`: the ticket is drawn "
            "again, to the same bits."
        ) from None


def _last_loss(metrics: list[Row]) -> dict[str, float]:
    loss = metrics[-1]["loss"] if metrics else None
    return {"loss": loss} if isinstance(loss, float) else {}


def _write_expert(folder: Path, expert: nn.Module, trainer: Trainer) -> None:
    """A diffusers model folder with the weights the stage hands on."""

    def write(temporary: Path) -> None:
        cast(Any, expert).save_config(temporary)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in trainer.final_weights().items()}
        save_file(weights, temporary / WEIGHTS_FILE, metadata={"format": "pt"})

    write_folder(folder / EXPERT_FOLDER, write)
