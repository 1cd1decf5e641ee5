"""The driver: a thin loop that carries out what `decide` says and keeps the manifest true."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from ebdiff_orchestrator.cluster import Cluster, connect, request_of
from ebdiff_orchestrator.decide import Decision, Situation, may_retry, next_jobs
from ebdiff_orchestrator.finishing import assemble, sample
from ebdiff_orchestrator.handle import RunHandle
from ebdiff_orchestrator.interrupts import Interrupts, RunStopped
from ebdiff_orchestrator.planning import Outlook, check_data_fits, look_ahead
from ebdiff_orchestrator.run_directory import RunDirectory
from ebdiff_orchestrator.stages import ASSEMBLE, SAMPLE, JobOutline, assemble_key, outline_jobs, sample_key, worker_job
from ebdiff_orchestrator.view import Silent, View
from region_workers.data.store import default_cache_dir, ensure_store
from region_workers.results import finished_result
from schemas.digest import digest
from schemas.errors import RunFailed, UserError
from schemas.job import FAILURE_FILE, PROGRESS_FILE, STOP_FILE, Artifact, Failure, Progress, StageResult
from schemas.manifest import Manifest, StageRecord
from schemas.plan import Plan

_POLL_S = 0.5
_STOP_LIMIT_S = 120.0


def launch(
    plan: Plan, run_dir: str | Path | None = None, *, address: str | None = None, view: View | None = None
) -> RunHandle:
    """Run the plan to a finished ensemble in `run_dir` (default: runs/<plan.name>), or go on with it there.

    A finished run is returned as it is. Uses the Ray cluster at `address` or RAY_ADDRESS, else one embedded in this
    process. Raises PlanError or UserError before anything starts if the plan cannot run or the directory holds a
    different experiment, RunFailed if a region failed for good (the others' work is saved), RunStopped on Ctrl-C.
    """
    directory = RunDirectory(Path(run_dir) if run_dir is not None else Path("runs") / plan.name)
    view = view or Silent()
    plan = _with_absolute_path(plan)
    outlook = look_ahead(plan)
    with directory.held():
        manifest = directory.begin(plan)
        manifest = _distrust_damaged(directory, manifest, view)
        if manifest.finished():
            view.line(f"The run in {directory.path} is finished; nothing to do.")
            return RunHandle(directory.path)
        return _Run(directory, manifest, outlook, view).carry_out(address)


def resume(run_dir: str | Path, *, address: str | None = None, view: View | None = None) -> RunHandle:
    """Go on with the run in `run_dir` by its own plan; as `launch` otherwise."""
    directory = RunDirectory(Path(run_dir))
    return launch(directory.read().plan, directory.path, address=address, view=view)


@dataclass
class _Attempt:
    """One job under way."""

    outline: JobOutline
    future: Future[None]
    started_at: float
    seen: bool = False


@dataclass
class _Budget:
    """A job's attempts in this launch, and whether it has failed for good."""

    attempts: int = 0
    failed: str | None = None


@dataclass
class _Run:
    directory: RunDirectory
    manifest: Manifest
    outlook: Outlook
    view: View
    running: dict[str, _Attempt] = field(default_factory=dict)
    budgets: dict[str, _Budget] = field(default_factory=dict)
    waiting_since: float | None = None

    @property
    def plan(self) -> Plan:
        return self.manifest.plan

    def carry_out(self, address: str | None) -> RunHandle:
        """Images, then the jobs, then the ensemble and its images."""
        (self.directory.path / STOP_FILE).unlink(missing_ok=True)
        cache_dir = Path(self.plan.workers.cache_dir or default_cache_dir()).expanduser().resolve()
        with Interrupts() as interrupts, self.view:
            images, store_digest = self._prepare_images(cache_dir)
            jobs = outline_jobs(self.plan, store_digest)
            self._take_results(jobs)
            if _everything_trained(self.manifest, jobs):
                self._finish(_in_this_process)
            else:
                self.view.line("Starting Ray ...")
                with connect(self.plan.workers, len(jobs), address) as cluster:
                    check_data_fits(self.plan, images, cluster.request.processes)
                    self.view.line(f"{len(jobs)} jobs, {cluster.request} each; free: {cluster.describe_free()}.")
                    self._train(jobs, cluster, cache_dir, store_digest, interrupts)
                    self._raise_if_failed()
                    self._finish(_in_this_process if cluster.embedded else cluster.run_once)
            self.view.line(f"Done: {self.directory.path / ASSEMBLE} (grid: {self.directory.path / SAMPLE}/grid.png)")
        return RunHandle(self.directory.path)

    def _prepare_images(self, cache_dir: Path) -> tuple[int, str]:
        store = ensure_store(self.plan.data, cache_dir, self.view.images)
        check_data_fits(self.plan, len(store), request_of(self.plan.workers, 0.0).processes)
        if store.unreadable:
            self.view.line(f"{store.unreadable} unreadable images were left out.")
        known = self.manifest.store_digest
        if known is not None and known != store.digest:
            raise UserError(
                f"data.path = {self.plan.data.path}: its images are not those that the run in {self.directory.path} "
                "began with. Restore them, or give another --run-dir."
            )
        self.manifest = self.directory.write(self.manifest.model_copy(update={"store_digest": store.digest}))
        return len(store), store.digest

    def _train(
        self,
        jobs: tuple[JobOutline, ...],
        cluster: Cluster,
        cache_dir: Path,
        store_digest: str,
        interrupts: Interrupts,
    ) -> None:
        """Start, watch and collect jobs until none is open."""
        costs = {job.name: self._expected_macs(job) for job in jobs}
        by_name = {job.name: job for job in jobs}
        while True:
            if interrupts.requested:
                self._stop(jobs, interrupts)
            decision = next_jobs(jobs, costs, self._situation(cluster), self.plan.workers.wait_limit_s)
            self._give_up(by_name, decision)
            for name in decision.start:
                self._start(by_name[name], cluster, cache_dir, store_digest)
            self._note_waiting(decision, cluster)
            if decision.finished and not self.running:
                return
            time.sleep(_POLL_S)
            self._watch(cluster)
            self._take_results(jobs)
            self._collect(jobs)

    def _situation(self, cluster: Cluster) -> Situation:
        done = frozenset(name for name, record in self.manifest.stages.items() if record.status == "done")
        failed = frozenset(name for name, budget in self.budgets.items() if budget.failed)
        waited = time.time() - self.waiting_since if self.waiting_since else 0.0
        return Situation(done, frozenset(self.running), failed, cluster.free_slots(), waited)

    def _start(self, outline: JobOutline, cluster: Cluster, cache_dir: Path, store_digest: str) -> None:
        budget = self.budgets.setdefault(outline.name, _Budget())
        budget.attempts += 1
        now = time.time()
        for stage in (outline.draw, outline.train):
            if stage is None or self.manifest.stage(stage.name).status == "done":
                continue
            (self.directory.path / stage.name / FAILURE_FILE).unlink(missing_ok=True)
            record = self.manifest.stage(stage.name)
            update = {"key": stage.key, "attempts": record.attempts + 1, "error": None}
            self.manifest = self.manifest.with_stage(record.model_copy(update=update))
        self.manifest = self.directory.write(self.manifest)
        job = worker_job(self.plan, outline, self.directory.path, cache_dir, store_digest)
        total = sum(record.attempts for record in self.manifest.stages.values())
        self.running[outline.name] = _Attempt(outline, cluster.start(job, total), now)
        self.view.line(f"{outline.name}: started (attempt {budget.attempts}).")

    def _watch(self, cluster: Cluster) -> None:
        """Read what the workers say of themselves; a stage that began is marked running."""
        for name, attempt in self.running.items():
            progress = self._progress_of(attempt)
            if progress is None:
                self._check_started(name, attempt)
                continue
            if not attempt.seen:
                attempt.seen = True
                cluster.has_started(name)
            record = self.manifest.stage(progress.stage)
            if record.status == "pending":
                started = record.started_at or progress.stage_started_at
                update = {"status": "running", "started_at": started}
                self.manifest = self.directory.write(self.manifest.with_stage(record.model_copy(update=update)))
            self.view.job(name, progress)

    def _progress_of(self, attempt: _Attempt) -> Progress | None:
        newest: Progress | None = None
        for stage in attempt.outline.stages:
            path = self.directory.path / stage / PROGRESS_FILE
            if path.is_file():
                progress = Progress.model_validate_json(path.read_text())
                if progress.updated_at >= attempt.started_at:
                    newest = progress
        return newest

    def _check_started(self, name: str, attempt: _Attempt) -> None:
        limit = self.plan.workers.wait_limit_s
        if time.time() - attempt.started_at > limit:
            raise RunFailed(
                f"{name} was given to Ray but no worker has begun within workers.wait_limit_s = {limit:.0f} s. "
                f"See what holds the cluster with `ray status`, then: ebdiff resume {self.directory.path}"
            )

    def _take_results(self, jobs: tuple[JobOutline, ...]) -> None:
        """Enter the stages that workers have finished, once their files are verified."""
        for job in jobs:
            for stage in (job.draw, job.train):
                if stage is None or self.manifest.stage(stage.name).status == "done":
                    continue
                result = finished_result(self.directory.path, stage.name, stage.key)
                if result is None or (stage is job.train and result.steps != job.train.steps):
                    continue
                if not self.directory.damaged(result.artifacts):
                    record = _completed(self.manifest.stage(stage.name), result)
                    self.manifest = self.directory.write(self.manifest.with_stage(record))
                    self.view.line(f"{stage.name}: done in {result.active_s:.0f} s ({result.steps} steps).")

    def _collect(self, jobs: tuple[JobOutline, ...]) -> None:
        """See which attempts have ended, and whether what failed may be tried again."""
        for name in [name for name, attempt in self.running.items() if attempt.future.done()]:
            attempt = self.running.pop(name)
            self._take_results(jobs)
            if all(self.manifest.stage(stage).status == "done" for stage in attempt.outline.stages):
                continue
            failure = self._failure_of(attempt)
            budget = self.budgets[name]
            if may_retry(budget.attempts, self.plan.workers.retries, failure.retryable):
                self.view.line(f"{name}: {failure.message} Trying again (attempt {budget.attempts + 1}).")
                self._mark(failure.stage, "pending", failure.message)
            else:
                budget.failed = failure.message
                self._mark(failure.stage, "failed", failure.message)
                self.view.line(f"{name}: failed. {failure.message}")

    def _failure_of(self, attempt: _Attempt) -> Failure:
        for stage in attempt.outline.stages:
            path = self.directory.path / stage / FAILURE_FILE
            if path.is_file():
                return Failure.model_validate_json(path.read_text())
        stage = next(s for s in attempt.outline.stages if self.manifest.stage(s).status != "done")
        error = attempt.future.exception()
        message = f"The worker was lost ({type(error).__name__})." if error else "The worker ended without a result."
        return Failure(stage=stage, message=message, retryable=True, traceback=str(error or ""), at=time.time())

    def _mark(self, stage: str, status: str, error: str | None) -> None:
        record = self.manifest.stage(stage).model_copy(update={"status": status, "error": error})
        self.manifest = self.directory.write(self.manifest.with_stage(record))

    def _give_up(self, by_name: dict[str, JobOutline], decision: Decision) -> None:
        for name, reason in decision.give_up.items():
            self.budgets.setdefault(name, _Budget()).failed = reason
            stage = next(s for s in by_name[name].stages if self.manifest.stage(s).status != "done")
            self._mark(stage, "failed", reason)
            self.view.line(f"{name}: given up, {reason}.")

    def _note_waiting(self, decision: Decision, cluster: Cluster) -> None:
        if not decision.waiting or decision.start or self.running:
            self.waiting_since = None
        elif self.waiting_since is None:
            self.waiting_since = time.time()
        if decision.waiting:
            names = ", ".join(decision.waiting)
            self.view.waiting(f"{names}: waiting for {cluster.request} each; free: {cluster.describe_free()}.")

    def _stop(self, jobs: tuple[JobOutline, ...], interrupts: Interrupts) -> None:
        """Ask the workers to save and stop, and wait for them; a second interrupt does not wait."""
        self.view.line("Stopping: the workers save their state (press Ctrl-C again not to wait) ...")
        (self.directory.path / STOP_FILE).touch()
        deadline = time.monotonic() + _STOP_LIMIT_S
        seen = [attempt for attempt in self.running.values() if attempt.seen]
        while not all(attempt.future.done() for attempt in seen):
            if interrupts.insisted or time.monotonic() > deadline:
                self.view.line("Not waiting any longer; the last checkpoints stay.")
                break
            time.sleep(_POLL_S)
        self._take_results(jobs)
        for name, record in self.manifest.stages.items():
            if record.status == "running":
                self._mark(name, "pending", "stopped")
        raise RunStopped(f"Stopped. Go on with: ebdiff resume {_short(self.directory.path)}")

    def _raise_if_failed(self) -> None:
        failed = {name: budget.failed for name, budget in self.budgets.items() if budget.failed}
        if failed:
            lines = "\n".join(f"  - {name}: {reason}" for name, reason in failed.items())
            raise RunFailed(
                f"{len(failed)} job(s) failed; what the others completed is saved:\n{lines}\n"
                f"When the cause is gone: ebdiff resume {_short(self.directory.path)}"
            )

    def _finish(self, run_once: Callable[..., tuple[Artifact, ...]]) -> None:
        """Assemble, then sample, unless that is done for these very experts."""
        experts = {
            region.name: digest([a.model_dump() for a in self.manifest.stage(f"train/{region.name}").artifacts])
            for region in self.plan.regions
        }
        ensemble_key = assemble_key(self.plan, experts)
        self._finish_stage(ASSEMBLE, ensemble_key, lambda: run_once(assemble, self.plan, self.directory.path))
        key = sample_key(self.plan, ensemble_key)
        self.view.line(f"Sampling {self.plan.sampling.num_images} images in {self.plan.sampling.steps} steps ...")
        self._finish_stage(SAMPLE, key, lambda: run_once(sample, self.plan, self.directory.path))

    def _finish_stage(self, name: str, key: str, act: Callable[[], tuple[Artifact, ...]]) -> None:
        record = self.manifest.stage(name)
        if record.status == "done" and record.key == key:
            return
        started = time.time()
        update = {"key": key, "status": "running", "attempts": record.attempts + 1, "started_at": started}
        self.manifest = self.directory.write(self.manifest.with_stage(record.model_copy(update=update)))
        artifacts = act()
        finished = time.time()
        update = {"status": "done", "finished_at": finished, "active_s": finished - started, "artifacts": artifacts}
        record = self.manifest.stage(name).model_copy(update=update)
        self.manifest = self.directory.write(self.manifest.with_stage(record))

    def _expected_macs(self, job: JobOutline) -> float:
        """Work of a job, to start the longest first; a draw is taken as a small constant of dense steps."""
        if job.train is None:
            return float("inf")
        outlook = next(o for o in self.outlook.regions if o.region.name == job.train.region)
        return float(outlook.costs.macs * outlook.steps)


def _in_this_process(function: Callable[..., tuple[Artifact, ...]], *arguments: object) -> tuple[Artifact, ...]:
    return function(*arguments)


def _completed(record: StageRecord, result: StageResult) -> StageRecord:
    return record.model_copy(
        update={
            "key": result.key,
            "status": "done",
            "started_at": record.started_at or result.started_at,
            "finished_at": result.finished_at,
            "active_s": result.active_s,
            "steps": result.steps,
            "artifacts": result.artifacts,
            "hardware": result.hardware,
            "metrics": result.metrics,
            "error": None,
        }
    )


def _everything_trained(manifest: Manifest, jobs: tuple[JobOutline, ...]) -> bool:
    return all(manifest.stage(stage).status == "done" for job in jobs for stage in job.stages)


def _distrust_damaged(directory: RunDirectory, manifest: Manifest, view: View) -> Manifest:
    """Stages whose files are not what the manifest recorded go back to pending; a failed one gets a new chance."""
    for record in list(manifest.stages.values()):
        if record.status == "done":
            damaged = directory.damaged(record.artifacts)
            if not damaged:
                continue
            view.line(f"{record.name}: {damaged[0]} is missing or damaged; the stage is done again.")
            (directory.path / record.name / "result.json").unlink(missing_ok=True)
        if record.status != "pending":
            manifest = manifest.with_stage(record.model_copy(update={"status": "pending"}))
    return directory.write(manifest)


def _with_absolute_path(plan: Plan) -> Plan:
    """A local data.path made absolute, since workers have another current directory."""
    path = Path(plan.data.path).expanduser()
    if not path.exists():
        return plan
    data = plan.data.model_copy(update={"path": str(path.resolve())})
    return plan.model_copy(update={"data": data})


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
