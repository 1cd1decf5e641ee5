"""The train stage: one expert, from its ticket's inherited weights, with a fresh optimizer, on its region."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from region_workers.checkpoints import Checkpoints
from region_workers.device import World
from region_workers.drawing.draw import EXPERT_FOLDER, METRICS_FILE
from region_workers.family import ModelFamily
from region_workers.pruned_unet import PrunedUNet2DModel
from region_workers.randomness import StepRandomness
from region_workers.recorder import Recorder, stop_requested
from region_workers.results import publish
from region_workers.trainer import Trainer
from schemas.durable import write_folder
from schemas.job import TrainStage, WorkerJob
from schemas.tables import write_metrics


def train(job: WorkerJob, stage: TrainStage, family: ModelFamily, randomness: StepRandomness, world: World) -> None:
    """Train to `stage.steps` updates from the last good checkpoint, then publish the expert (EMA weights)."""
    run_dir = Path(job.run_dir)
    folder = run_dir / stage.name
    expert = PrunedUNet2DModel.from_pretrained(
        run_dir / stage.draw / stage.region / EXPERT_FOLDER, low_cpu_mem_usage=False
    )
    trainer = Trainer(expert, family, randomness, stage.timesteps, job.training, world)
    recorder = Recorder(job, stage.name, stage.key, stage.steps, world, job.training.learning_rate)
    checkpoints = Checkpoints(folder / "checkpoints", stage.key, job.checkpointing.keep)
    checkpoint = checkpoints.newest_good()
    if checkpoint is None:
        recorder.begin(0, [], 0.0)
    else:
        trainer.load_state_tensors(checkpoint.tensors, checkpoint.info.step)
        recorder.begin(checkpoint.info.step, checkpoint.metrics, checkpoint.info.active_s)

    while trainer.step < stage.steps:
        trainer.advance()
        stop = recorder.after_step(trainer)
        due = trainer.step % job.checkpointing.interval_steps == 0 or trainer.step == stage.steps
        if due or stop:
            trainer.check_finite()
            if world.leads:
                checkpoints.save(trainer.step, recorder.active_s, trainer.state_tensors(), recorder.metrics)
            world.barrier()
        if stop and trainer.step < stage.steps:
            recorder.announce("stopped", trainer.step)
            raise stop_requested(trainer.step)

    if world.leads:
        _write_expert(folder, expert, trainer)
        write_metrics(folder / METRICS_FILE, recorder.metrics)
    files = [path for path in (folder / EXPERT_FOLDER).rglob("*") if path.is_file()] + [folder / METRICS_FILE]
    last_loss = recorder.metrics[-1]["loss"] if recorder.metrics else None
    metrics = {"loss": last_loss} if isinstance(last_loss, float) else {}
    publish(job, recorder, world, trainer.step, files, metrics)
    world.barrier()


def _write_expert(folder: Path, expert: PrunedUNet2DModel, trainer: Trainer) -> None:
    """A diffusers model folder with the weights the stage hands on."""

    def write(temporary: Path) -> None:
        expert.save_config(temporary)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in trainer.final_weights().items()}
        save_file(weights, temporary / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})

    write_folder(folder / EXPERT_FOLDER, write)
