"""The loop that every stage runs in: restore, step, report, save, stop, publish."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from region_workers.storage.durable import write_model
from region_workers.storage.integrity import artifact
from region_workers.storage.tables import write_metrics
from region_workers.training.checkpoints import Checkpoint, Checkpoints
from region_workers.training.device import World
from region_workers.training.diffusion import TimestepSampler
from region_workers.training.failures import OutdatedError, StopRequestedError, TicketNotDrawnError
from region_workers.training.family import ModelFamily
from region_workers.training.randomness import StepRandomness
from region_workers.training.reporter import StageReporter
from region_workers.training.trainer import Trainer
from schemas.experiment import SparsityPlan
from schemas.job import (
    CHECKPOINTS_FOLDER,
    METRICS_FILE,
    RESULT_FILE,
    Artifact,
    DrawStage,
    StageResult,
    TrainStage,
    WorkerJob,
)
from schemas.process import unix_time


class Stage(ABC):
    """What one kind of stage decides for itself; `StageLoop` does the rest.

    `inputs`: the files that it begins with. `checkpoint_key`: its checkpoints are of no other stage. `most_steps`:
    checkpoints of more are passed over. `can_be_extended`: its last checkpoint stays, for a run of more steps.
    """

    inputs: tuple[Artifact, ...] = ()
    most_steps: int | None = None
    can_be_extended = False

    def __init__(
        self,
        job: WorkerJob,
        plan: DrawStage | TrainStage,
        network: nn.Module,
        family: ModelFamily,
        randomness: StepRandomness,
        world: World,
        total_steps: int,
        keep_ema: bool = True,
        sparsity: SparsityPlan | None = None,
    ) -> None:
        self.job, self.plan, self.world = job, plan, world
        training = job.training
        sampler = TimestepSampler(plan.timesteps, training.timesteps, job.diffusion, world.device)
        self.trainer = Trainer(network, family, randomness, sampler, training, world, keep_ema, sparsity, total_steps)
        self.folder = Path(job.run_dir) / plan.name
        self.checkpoint_key = plan.key
        self.reporter = StageReporter(job, plan.name, total_steps, world)

    def restore(self, checkpoint: Checkpoint) -> None:  # noqa: B027 - most stages have no more than the trainer's state
        """Take what else than the trainer's state a checkpoint holds."""

    def begin(self) -> None:  # noqa: B027
        """What is to be done before the first step."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether the stage needs no more steps."""

    def after_step(self) -> None:  # noqa: B027
        """What is to be done after a step, before it may be saved."""

    def checkpoint_files(self) -> Mapping[str, str]:
        """The SHA-256, by path in the stage's folder, of files outside a checkpoint that it needs unchanged."""
        return {}

    def checkpoint_writer(self) -> Callable[[Path], None] | None:
        """What writes the stage's own files into a checkpoint's folder; it runs later, so it holds copies."""
        return None

    @abstractmethod
    def write_products(self) -> list[Path]:
        """Write what the stage has made; the files of it. Only on rank zero."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """Numbers for the manifest."""


class StageLoop:
    """One stage on one worker, from its last good checkpoint to its result."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._trainer, self._reporter = stage, stage.trainer, stage.reporter
        self._job, self._world = stage.job, stage.world
        self._checkpoints = Checkpoints(
            stage.folder / CHECKPOINTS_FOLDER,
            stage.checkpoint_key,
            self._job.checkpointing.keep,
            self._world.on_deleted,
            self._job.attempt,
            self._job.owner,
        )

    def run(self) -> None:
        """Train until the stage is done, then publish its result.

        StopRequestedError, with the state saved, if the run was asked to stop; else what the stage itself raises.
        """
        stage, trainer, reporter = self._stage, self._trainer, self._reporter
        with self._checkpoints:
            self._restore()
            with self._saving_when_stopped():
                stage.begin()
                while not stage.is_done():
                    trainer.train_step()
                    if reporter.after_step(trainer) and not stage.is_done():
                        raise stopped_at(trainer.step)
                    stage.after_step()
                    if trainer.step % self._job.checkpointing.interval_steps == 0 and not stage.is_done():
                        self._save()
                        if reporter.growth_requested():
                            raise stopped_at(trainer.step)
            self._publish()

    def _restore(self) -> None:
        checkpoint = self._checkpoints.newest_good(self._world, self._stage.most_steps)
        self._reporter.note(self._checkpoints.passed_over)
        if checkpoint is None:
            self._reporter.begin(0, [], 0.0)
            return
        self._trainer.load_state_tensors(checkpoint.tensors, checkpoint.info.step)
        self._stage.restore(checkpoint)
        self._reporter.begin(checkpoint.info.step, checkpoint.metrics, checkpoint.info.active_s)

    @contextmanager
    def _saving_when_stopped(self) -> Iterator[None]:
        try:
            yield
        except OutdatedError:  # nothing more of this worker counts
            raise
        except (StopRequestedError, TicketNotDrawnError) as error:
            self._save()
            self._checkpoints.wait()
            self._world.barrier()
            if isinstance(error, StopRequestedError):
                self._reporter.announce("stopped", self._trainer.step)
            raise

    def _save(self) -> None:
        self._trainer.check_finite()
        if self._world.is_rank_zero:
            self._checkpoints.save(
                self._trainer.step,
                self._reporter.active_s,
                self._trainer.state_tensors(),
                self._reporter.metrics,
                self._stage.checkpoint_writer(),
                self._stage.checkpoint_files(),
            )
        self._world.barrier()

    def _publish(self) -> None:
        """Write what the stage has made, and last its result, by which the driver knows that it is finished."""
        if self._stage.can_be_extended:
            self._save()
        self._checkpoints.wait()
        self._trainer.check_finite()
        if self._world.is_rank_zero:
            metrics_file = self._stage.folder / METRICS_FILE
            write_metrics(metrics_file, self._reporter.metrics)
            files = [*self._stage.write_products(), metrics_file]
            write_model(self._stage.folder / RESULT_FILE, self._result(files))
            self._reporter.announce("done", self._trainer.step)
            if not self._stage.can_be_extended:
                self._checkpoints.clear()
        self._world.barrier()

    def _result(self, files: list[Path]) -> StageResult:
        stage, job = self._stage, self._job
        return StageResult(
            stage=stage.plan.name,
            key=stage.plan.key,
            attempt=job.attempt,
            owner=job.owner,
            started_at=self._reporter.started_at,
            finished_at=unix_time(),
            active_s=self._reporter.active_s,
            steps=self._trainer.step,
            inputs=stage.inputs,
            artifacts=tuple(artifact(Path(job.run_dir), path) for path in sorted(files)),
            hardware=self._world.describe(job.training),
            metrics=stage.figures(),
            peak_memory_bytes=self._world.peak_memory_bytes(),
        )


def stopped_at(step: int) -> StopRequestedError:
    """The exception that ends a stage after `step` updates."""
    return StopRequestedError(f"stopped after step {step}, as asked; the state is saved")
