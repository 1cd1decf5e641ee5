"""What a stage tells the outside while it runs: the progress file and the rows of metrics."""

import time
from collections.abc import Mapping
from pathlib import Path

from region_workers.storage.durable import replace_model
from region_workers.storage.integrity import read_if_whole
from region_workers.storage.run_files import RunFiles
from region_workers.storage.tables import Row
from region_workers.training.device import World
from region_workers.training.trainer import Trainer
from schemas.job import (
    GROW_FILE,
    PROGRESS_FILE,
    RECENT_METRICS_FILE,
    STOP_FILE,
    Note,
    Progress,
    ProgressState,
    RecentMetrics,
    WorkerJob,
)
from schemas.process import unix_time

_HEARTBEAT_S = 1.0
_RECENT_ROWS = 100  # told between checkpoints


def announce_start(job: WorkerJob, stage: str) -> None:
    """Say that a worker has taken the job and is getting ready."""
    now = unix_time()
    progress = Progress(
        stage=stage,
        attempt=job.attempt,
        owner=job.owner,
        state="starting",
        stage_started_at=now,
        updated_at=now,
    )
    replace_model(Path(job.run_dir) / stage / PROGRESS_FILE, progress)


def is_told(note: Path, owner: str, attempt: int) -> bool:
    """Whether the driver has left this note for this attempt."""
    told = read_if_whole(Note, note)
    return told is not None and told.is_for(owner, attempt)


class StageReporter:
    """Progress and metrics of one stage on one worker; only rank zero writes."""

    def __init__(self, job: WorkerJob, stage: str, total_steps: int | None, world: World) -> None:
        self._folder = Path(job.run_dir) / stage
        self._run_dir, self._owner = Path(job.run_dir), job.owner
        self._interval = job.logging.interval_steps
        self._world = world
        self.metrics: list[Row] = []
        self._rows_told = 0
        self.started_at = unix_time()
        self._progress = Progress(
            stage=stage,
            attempt=job.attempt,
            owner=job.owner,
            total_steps=total_steps,
            stage_started_at=self.started_at,
        )
        self._earlier_s = 0.0
        self._heartbeat_at = 0.0
        self._row_at, self._row_step, self._row_cpu_s = time.perf_counter(), 0, time.process_time()

    @property
    def active_s(self) -> float:
        """Seconds of work on this stage: this attempt's, and what an earlier one had saved."""
        return self._earlier_s + unix_time() - self.started_at

    def begin(self, step: int, metrics: list[Row], earlier_s: float) -> None:
        """Start, or go on from a checkpoint made after `step` updates."""
        self.metrics, self._earlier_s, self._rows_told = list(metrics), earlier_s, 0
        self._row_step = step
        self._row_at, self._row_cpu_s = time.perf_counter(), time.process_time()
        self._progress = self._progress.model_copy(update={"first_step": step})
        self.announce("running", step)
        self._heartbeat_at = 0.0  # the first step is told at once

    def after_step(self, trainer: Trainer) -> bool:
        """Note one finished step; whether the run was asked to stop. Waits for the device at the log interval only."""
        at_interval = trainer.step % self._interval == 0 or trainer.step == self._progress.total_steps
        if at_interval:
            self._add_row(trainer)
        beat = self.heartbeat(trainer.step)
        if self._world.size == 1:
            return beat and self.stop_requested()
        # Several workers must agree, which they do where they wait for each other anyway.
        return at_interval and self._world.broadcast_bool(self.stop_requested())

    def heartbeat(self, step: int) -> bool:
        """Report that the worker is alive, at most once a second; returns whether it did."""
        self._world.heartbeat()
        if unix_time() - self._heartbeat_at < _HEARTBEAT_S:
            return False
        self.announce("running", step)
        return True

    def stop_requested(self) -> bool:
        """Whether the driver asks the workers to stop, has lost the run to another, or the machine is taken away."""
        told = is_told(self._run_dir / STOP_FILE, self._owner, self._progress.attempt)
        stop = told or RunFiles(self._run_dir).has_newer_owner(self._owner)
        return self._world.is_preempted() or stop

    def growth_requested(self) -> bool:
        """Whether the driver asks this very attempt to stop at a checkpoint, to go on with more workers; all agree."""
        asked = self._world.is_rank_zero and is_told(self._folder / GROW_FILE, self._owner, self._progress.attempt)
        return self._world.broadcast_bool(asked)

    def note(self, text: str, distances: Mapping[str, float] | None = None, threshold: float | None = None) -> None:
        """Set the words beside the numbers in the progress file, and how far a draw is from its tickets."""
        limit = threshold if distances else None
        update = {"note": text, "mask_distances": dict(distances or {}), "mask_threshold": limit}
        self._progress = self._progress.model_copy(update=update)

    def announce(self, state: ProgressState, step: int) -> None:
        self._heartbeat_at = unix_time()
        elapsed = max(self._heartbeat_at - self.started_at, 1e-9)
        rate = (step - self._progress.first_step) / elapsed
        self._progress = self._progress.model_copy(
            update={"state": state, "step": step, "steps_per_s": rate or None, "updated_at": self._heartbeat_at}
        )
        if self._world.is_rank_zero:
            self._tell_recent_metrics()
            replace_model(self._folder / PROGRESS_FILE, self._progress)

    def _tell_recent_metrics(self) -> None:
        if len(self.metrics) == self._rows_told:
            return
        self._rows_told = len(self.metrics)
        rows = self.metrics[-_RECENT_ROWS:]
        after = self.metrics[-len(rows) - 1]["step"] if len(self.metrics) > len(rows) else 0
        replace_model(self._folder / RECENT_METRICS_FILE, RecentMetrics.model_validate({"after": after, "rows": rows}))

    def _add_row(self, trainer: Trainer) -> None:
        loss, gradient_norm = trainer.read_metrics()
        now, cpu_s = time.perf_counter(), time.process_time()
        elapsed = max(now - self._row_at, 1e-9)
        rate, cores = (trainer.step - self._row_step) / elapsed, (cpu_s - self._row_cpu_s) / elapsed
        self._row_at, self._row_step, self._row_cpu_s = now, trainer.step, cpu_s
        self.metrics.append(
            {
                "step": trainer.step,
                "loss": loss,
                "gradient_norm": gradient_norm,
                "learning_rate": trainer.learning_rate,
                "steps_per_s": rate,
                "unix_time_s": unix_time(),
                "processor_cores": cores,
                **self._world.resources(),
            }
        )
        self._progress = self._progress.model_copy(update={"loss": loss})
