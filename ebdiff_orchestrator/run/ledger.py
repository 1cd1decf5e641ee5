"""The manifest in memory and on disk: every change of a stage goes through here and is durable when it returns."""

from collections.abc import Callable, Mapping
from typing import Self

from ebdiff_orchestrator.run.manifests import begun_anew, continued, extended, new_manifest
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import JobOutline, made_from, with_what_follows
from ebdiff_orchestrator.run.view import View
from region_workers.storage.integrity import finished_result
from schemas.errors import UserError
from schemas.job import CHECKPOINTS_FOLDER, RECENT_METRICS_FILE, RESULT_FILE, Artifact, Progress, StageResult
from schemas.manifest import DenseSource, DeviceUsage, Evaluation, Launch, Manifest, NetworkSizes, StageRecord, Status
from schemas.plan import Plan
from schemas.process import unix_time


class Ledger:
    """What is known of a run. Only the driver holds one."""

    def __init__(self, directory: RunDirectory, view: View | None = None) -> None:
        self.directory, self.manifest, self._view = directory, directory.read(), view or View()
        self._launch: Launch | None = None

    @classmethod
    def begin(cls, directory: RunDirectory, plan: Plan, view: View | None = None) -> Self:
        """The ledger of this plan's run: a new one, or the one at hand if it is of the same experiment.

        A run in which no job has begun yet gives way. UserError, showing what differs, if the run is of another.
        """
        known = directory.read() if directory.exists() else None
        begun = known is not None and known.begun()
        directory.write(continued(known, plan, directory.path) if known and begun else new_manifest(plan))
        return cls(directory, view)

    def extend(self, plan: Plan) -> None:
        """Give the run its plan with more steps; PlanError if that is not all that differs.

        Of a training that begins anew goes what would be taken for the new one's progress.
        """
        manifest = extended(self.manifest, plan, self.directory.saved_steps)
        for stage in begun_anew(self.plan, plan):
            for left in (CHECKPOINTS_FOLDER, RECENT_METRICS_FILE):
                self.directory.discard(f"{stage}/{left}")
        self._save(manifest)

    @property
    def plan(self) -> Plan:
        return self.manifest.plan

    def begin_launch(self) -> None:
        """Begin to record this launch; every later write moves its end along."""
        self._launch = Launch(started_at=unix_time(), ended_at=unix_time())

    def is_done(self, stage: str) -> bool:
        return self.manifest.stage(stage).status == "done"

    def all_done(self, jobs: tuple[JobOutline, ...]) -> bool:
        return all(self.is_done(stage) for job in jobs for stage in job.stages)

    def done_stages(self) -> frozenset[str]:
        return frozenset(name for name in self.manifest.stages if self.is_done(name))

    def first_open(self, job: JobOutline) -> str:
        return next(stage for stage in job.stages if not self.is_done(stage))

    def artifacts(self, stage: str, folder: str) -> tuple[Artifact, ...]:
        start = f"{stage}/{folder}/"
        return tuple(item for item in self.manifest.stage(stage).artifacts if item.path.startswith(start))

    def reopen_damaged_and_failed(self) -> None:
        """`reopen_damaged`; failed and interrupted stages are open again too."""
        self.reopen_damaged()
        for record in list(self.manifest.stages.values()):
            if record.status not in ("done", "pending"):
                self._put(record, status="pending")

    def reopen_damaged(self) -> bool:
        """Open the stages again whose files are not what was recorded, and all that was made from them; whether any.

        Of the latter what workers left is entered again by `collect_results`, if it still fits what it was made from.
        """
        done = [self.manifest.stage(name) for name in self.done_stages()]
        found = {record.name: self.directory.files.damaged(record.artifacts) for record in done}
        damaged = {name: paths[0] for name, paths in found.items() if paths}
        for name, path in damaged.items():
            self._forget(name, path)
        for name in with_what_follows(self.plan, damaged) & self.done_stages():
            self._put(self.manifest.stage(name), status="pending")
        return bool(damaged)

    def record_dense(self, dense: DenseSource | None) -> None:
        """Record the dense start of the run; UserError if it began with another."""
        known = self.manifest.dense
        begun = self.manifest.store_digest is not None
        if begun and (known.digest if known else None) != (dense.digest if dense else None):
            raise UserError(
                f"model.pretrained = {self.plan.model.pretrained}: it is not the network that the run in "
                f"{self.directory.path} began with ({known.path if known else 'fresh weights'}). Restore it, or give "
                "another --run-dir."
            )
        self._save(self.manifest.model_copy(update={"dense": dense}))

    def record_sizes(self, sizes: NetworkSizes) -> None:
        """Record the sizes of the run's networks, for all who read of it without building them."""
        if sizes != self.manifest.sizes:
            self._save(self.manifest.model_copy(update={"sizes": sizes}))

    def record_step_seconds(self, seconds: Mapping[float, float]) -> None:
        """Record what one update of each network takes, by pruning ratio."""
        self._save(self.manifest.model_copy(update={"step_seconds": dict(seconds)}))

    def record_borrowed_starts(self, sources: Mapping[str, str]) -> None:
        """Record the runs whose checkpoints stages go on from: what those cost is no part of this run's usage."""
        for stage, source in sources.items():
            self._put(self.manifest.stage(stage), reused_from=source)

    def record_usage(self, job: str, attempt: int, started_at: float, workers: int, gpus_each: float) -> None:
        """Record the devices that a job held from `started_at` until now; replaces what was recorded of it before."""
        usage = DeviceUsage(
            job=job,
            attempt=attempt,
            started_at=started_at,
            ended_at=unix_time(),
            workers=workers,
            gpus=workers * gpus_each,
        )
        others = tuple(old for old in self.manifest.usage if (old.job, old.started_at) != (job, started_at))
        self._save(self.manifest.model_copy(update={"usage": (*others, usage)}))

    def record_evaluation(self, evaluation: Evaluation) -> None:
        evaluations = {**self.manifest.evaluations, evaluation.key: evaluation}
        self._save(self.manifest.model_copy(update={"evaluations": evaluations}))

    def record_samples(self, store_digest: str, vae_digest: str | None) -> None:
        """Record the images, latents or drawings of the run, and the VAE; UserError if it began with others."""
        known = self.manifest.store_digest
        if known is not None and vae_digest != self.manifest.vae_digest:
            raise UserError(
                f"model.vae = {getattr(self.plan.model, 'vae', None)}: it is not the VAE that the run in "
                f"{self.directory.path} began with. Restore it, or give another --run-dir."
            )
        if known is not None and known != store_digest:
            raise UserError(
                f"data.path = {self.plan.data.path}: its {self.plan.data.kind} are not those that the run in "
                f"{self.directory.path} began with. Restore them, or give another --run-dir."
            )
        self._save(self.manifest.model_copy(update={"store_digest": store_digest, "vae_digest": vae_digest}))

    def begin_attempt(self, job: JobOutline) -> int:
        """Count an attempt for the job's first open stage; a number that no earlier attempt of the run had."""
        number = self.manifest.attempts + 1
        self.manifest = self.manifest.model_copy(update={"attempts": number})
        record = self.manifest.stage(self.first_open(job))
        self._put(record, attempts=record.attempts + 1, error=None)
        return number

    def mark_running(self, job: JobOutline, progress: Progress) -> None:
        """A worker was seen at work on a stage."""
        record = self.manifest.stage(progress.stage)
        if record.status == "pending" and progress.state != "starting":
            attempts = max(record.attempts, 1) if progress.stage == self.first_open(job) else record.attempts + 1
            started = record.started_at or progress.stage_started_at
            self._put(record, status="running", started_at=started, attempts=attempts)

    def collect_results(self, jobs: tuple[JobOutline, ...]) -> None:
        """Enter the stages that workers have finished, once their files are verified."""
        stages = [stage for job in jobs for stage in (job.draw, job.train) if stage and not self.is_done(stage.name)]
        for stage in stages:
            if not all(self.is_done(source) for source in made_from(self.plan).get(stage.name, ())):
                continue
            self.directory.fetch(f"{stage.name}/{RESULT_FILE}")
            result = finished_result(self.directory.path, stage)
            if result is None:
                continue
            damaged = self.directory.files.damaged(result.artifacts)
            if damaged:
                self._forget(stage.name, damaged[0])
            else:
                self._enter(result)
                source = f", taken over from {result.reused_from}" if result.reused_from else ""
                self._view.line(f"{stage.name}: done in {result.active_s:.0f} s ({result.steps} steps{source}).")

    def mark(self, stage: str, status: Status, error: str | None) -> None:
        self._put(self.manifest.stage(stage), status=status, error=error)

    def mark_stopped(self) -> None:
        """The run was interrupted: what was at work, or about to be, is open again."""
        for name, record in self.manifest.stages.items():
            starting = record.status == "pending" and record.attempts and record.error is None
            if record.status == "running" or starting:
                self.mark(name, "pending", "stopped")

    def finish_here(self, name: str, key: str, act: Callable[[], tuple[Artifact, ...]], gpus: float) -> None:
        """Do a stage of the driver's own, from an empty folder, unless it is done under this key."""
        record = self.manifest.stage(name)
        if record.status == "done" and record.key == key:
            return
        started = unix_time()
        self._put(record, key=key, status="running", attempts=record.attempts + 1, started_at=started)
        self.directory.discard(name)
        try:
            artifacts = act()
        except BaseException as error:
            self.mark(name, "pending" if isinstance(error, KeyboardInterrupt) else "failed", str(error) or "stopped")
            raise
        finally:
            self.record_usage(name, record.attempts + 1, started, 1, min(gpus, 1.0))
        finished = unix_time()
        self._put(
            self.manifest.stage(name),
            status="done",
            finished_at=finished,
            active_s=finished - started,
            artifacts=artifacts,
            error=None,
        )

    def _forget(self, stage: str, damaged: str) -> None:
        self._view.line(f"{stage}: {damaged} is missing or damaged; the stage is done again.")
        self.directory.discard(f"{stage}/{RESULT_FILE}")

    def _enter(self, result: StageResult) -> None:
        record = self.manifest.stage(result.stage)
        self._put(
            record,
            key=result.key,
            status="done",
            started_at=record.started_at or result.started_at,
            finished_at=result.finished_at,
            active_s=result.active_s,
            steps=result.steps,
            artifacts=result.artifacts,
            hardware=result.hardware,
            metrics=result.metrics,
            peak_memory_bytes=result.peak_memory_bytes,
            reused_from=result.reused_from or record.reused_from,
            error=None,
        )

    def _put(self, record: StageRecord, **update: object) -> None:
        self._save(self.manifest.with_stage(record.model_copy(update=update)))

    def _save(self, manifest: Manifest) -> None:
        """Write the manifest; this launch has lasted until now."""
        if self._launch is not None:
            launch = self._launch.model_copy(update={"ended_at": unix_time()})
            earlier = tuple(one for one in manifest.launches if one.started_at != launch.started_at)
            manifest = manifest.model_copy(update={"launches": (*earlier, launch)})
        self.manifest = self.directory.write(manifest)
        self._view.run(self.manifest)
