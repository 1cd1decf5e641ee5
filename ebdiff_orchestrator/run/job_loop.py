"""The loop over jobs: carries out what `decide` says, watches the workers, and collects what they leave."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ebdiff_orchestrator.cluster import RAY_FOLDER, Cluster
from ebdiff_orchestrator.placement.schedule import allowed_widths, speed_up
from ebdiff_orchestrator.run.decide import Decision, Growable, Situation, may_retry, next_growth, next_jobs
from ebdiff_orchestrator.run.interrupts import Interrupts, RunStopped
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.stages import JobOutline, worker_job
from ebdiff_orchestrator.run.view import View
from schemas.clock import unix_time
from schemas.errors import RunFailed
from schemas.job import FAILURE_FILE, GROW_FILE, PROGRESS_FILE, Failure, Progress

_POLL_S = 0.5
_Model = TypeVar("_Model", Progress, Failure)
_RECORD_USAGE_EVERY_S = 30.0
_FREED_WITHIN_S = 15.0  # Ray counts what a job gave back a little later


@dataclass
class _Attempt:
    """One job under way. `grow_to`: with how many workers it is to go on from its next checkpoint."""

    outline: JobOutline
    number: int
    workers: int
    future: Future[None]
    started_at: float
    progress: Progress | None = None
    grow_to: int | None = None
    recorded_at: float = 0.0


@dataclass
class _Budget:
    """A job's attempts since it last got further, where it got to, and why it has failed for good.

    `reached`: the stage and the step that an attempt went on from, so what is saved; `left_at`: how far the last one
    was that ended early.
    """

    attempts: int = 0
    reached: tuple[int, int] = (0, 0)
    left_at: tuple[int, int] = (-1, 0)
    failed: str | None = None

    def begins_at(self, reached: tuple[int, int]) -> None:
        """An attempt goes on from there; one that starts from further than all before it has a whole budget."""
        if reached > self.reached:
            self.reached, self.attempts = reached, 1

    def leaves_for_free(self, at: tuple[int, int]) -> bool:
        """Whether an attempt that ended early there costs nothing: it got further than the one that did before it."""
        further, self.left_at = at > self.left_at, max(at, self.left_at)
        self.attempts -= further
        return further


class JobLoop:
    """The jobs of one launch.

    `workers` says in which order jobs start and how many workers each gets; `limit`: the most that all hold together.
    """

    def __init__(
        self,
        jobs: tuple[JobOutline, ...],
        workers: Mapping[str, int],
        limit: int | None,
        ledger: Ledger,
        cluster: Cluster,
        view: View,
    ) -> None:
        self._jobs = {job.name: job for job in jobs}
        self._workers_of, self._planned, self._limit = dict(workers), dict(workers), limit
        self._ledger, self._cluster, self._view = ledger, cluster, view
        self._workers = ledger.plan.workers
        self._restart_s = 0.0
        self._growing_since: dict[str, float] = {}
        self._running: dict[str, _Attempt] = {}
        self._budgets = {job.name: _Budget() for job in jobs}
        self._waiting_since: float | None = None

    def run(self, interrupts: Interrupts) -> None:
        """Start, watch and collect until no job is open.

        Raises RunStopped when interrupted, and RunFailed if jobs failed for good, after the others are done, or if Ray
        has ended.
        """
        try:
            while self._advance(interrupts):
                time.sleep(_POLL_S)
                self._watch()
                self._ledger.collect_results(self._outlines())
                self._collect()
        finally:
            for attempt in self._running.values():
                self._record_usage(attempt)
        with suppress(OSError):  # Ray may be about to write there
            self._ledger.directory.discard(RAY_FOLDER)
        self._raise_if_failed()

    def _advance(self, interrupts: Interrupts) -> bool:
        """Start what can start; whether anything is still to be waited for."""
        if interrupts.requested:
            self._stop(interrupts)
        if self._cluster.has_ended():
            raise RunFailed(f"The Ray of this run has ended; what is saved stays. Go on with: {self._how_to_go_on()}")
        self._shrink_what_cannot_grow()
        decision = next_jobs(self._outlines(), self._workers_of, self._situation(), self._workers.wait_limit_s)
        for name, reason in decision.give_up.items():
            self._give_up(name, reason)
        for name in decision.late:
            self._give_up(
                name, self._cluster.too_late(replace(self._cluster.request, processes=self._workers_of[name]))
            )
        for name in decision.start:
            self._start(name)
        self._note_waiting(decision)
        if self._workers.elastic and not decision.waiting:
            self._grow()
        return bool(self._running) or not decision.finished

    def _outlines(self) -> tuple[JobOutline, ...]:
        return tuple(self._jobs.values())

    def _situation(self) -> Situation:
        failed = frozenset(name for name, budget in self._budgets.items() if budget.failed)
        waited = unix_time() - self._waiting_since if self._waiting_since else 0.0
        done = self._ledger.done_stages()
        return Situation(done, frozenset(self._running), failed, self._free_workers(), waited)

    def _free_workers(self) -> int:
        free = self._cluster.free_workers()
        if self._limit is None:
            return free
        return min(free, self._limit - sum(attempt.workers for attempt in self._running.values()))

    def _start(self, name: str) -> None:
        outline, budget, workers = self._jobs[name], self._budgets[name], self._workers_of[name]
        joins = self._growing_since.pop(name, None) is not None
        budget.attempts += not joins
        number = self._ledger.begin_attempt(outline)
        use_gpu = self._cluster.request.gpus > 0
        directory = self._ledger.directory
        job = worker_job(self._ledger.plan, outline, directory.location, self._ledger.inputs, number, use_gpu)
        job = job.model_copy(update={"owner": directory.owner})
        self._running[name] = _Attempt(outline, number, workers, self._cluster.start(job, workers), unix_time())
        how = f"goes on with {workers} workers" if joins else f"started (attempt {budget.attempts})"
        self._view.line(f"{name}: {how}.")
        self._view.job(name, Progress(stage=self._ledger.first_open(outline), state="starting"))

    def _watch(self) -> None:
        """Read what the workers say of themselves."""
        for name, attempt in list(self._running.items()):
            if unix_time() - attempt.recorded_at > _RECORD_USAGE_EVERY_S:  # so that a killed driver loses little of it
                self._record_usage(attempt)
            progress = self._progress_of(attempt)
            if progress is None:
                self._check_started(name, attempt)
                continue
            if attempt.progress is None:
                self._cluster.has_started(name)
            if progress.state == "running" and (attempt.progress is None or attempt.progress.state == "starting"):
                self._restart_s = max(self._restart_s, unix_time() - attempt.started_at)
                self._budgets[name].begins_at((attempt.outline.stages.index(progress.stage), progress.first_step))
            attempt.progress = progress
            self._ledger.mark_running(attempt.outline, progress)
            self._view.job(name, progress)

    def _progress_of(self, attempt: _Attempt) -> Progress | None:
        """What this attempt last said, of its latest stage."""
        said = [_read(Progress, self._file(stage, PROGRESS_FILE)) for stage in attempt.outline.stages]
        return next((p for p in reversed(said) if p is not None and p.attempt == attempt.number), None)

    def _check_started(self, name: str, attempt: _Attempt) -> None:
        """Give up a job that Ray has not placed in time; the others go on."""
        limit = self._workers.wait_limit_s
        if unix_time() - attempt.started_at > limit and not attempt.future.done():
            del self._running[name]
            self._cluster.cancel(name)
            late = f"Given to Ray, but no worker began within workers.wait_limit_s = {limit:.0f} s; see `ray status`."
            self._give_up(name, late)

    def _collect(self) -> None:
        """See which attempts have ended, and whether what failed may be tried again."""
        for name in [name for name, attempt in self._running.items() if attempt.future.done()]:
            attempt = self._running.pop(name)
            self._record_usage(attempt)
            self._ledger.collect_results((attempt.outline,))
            if self._ledger.all_done((attempt.outline,)):
                continue
            progress = self._progress_of(attempt)
            if attempt.grow_to is not None and progress is not None and progress.state == "stopped":
                self._workers_of[name] = attempt.grow_to
                self._growing_since[name] = unix_time()
                continue
            budget = self._budgets[name]
            if self._left_early(attempt, progress) and budget.leaves_for_free(_saved(attempt, progress)):
                self._view.line(f"{name}: its machine is taken away; it goes on elsewhere from what is saved.")
                continue
            failure = self._failure_of(attempt)
            if may_retry(budget.attempts, self._workers.retries, failure.retryable):
                self._view.line(f"{name}: {failure.message} Trying again.")
                self._ledger.mark(failure.stage, "pending", failure.message)
            else:
                self._give_up(name, failure.message)

    def _record_usage(self, attempt: _Attempt) -> None:
        """Enter the devices that an attempt held, from its start to now."""
        attempt.recorded_at = unix_time()
        gpus = self._cluster.request.gpus
        self._ledger.record_usage(attempt.outline.name, attempt.number, attempt.started_at, attempt.workers, gpus)

    def _grow(self) -> None:
        """Ask the training that would end last to stop at its next checkpoint, to go on with the free workers too."""
        if self._growing_since or any(attempt.grow_to for attempt in self._running.values()):
            return
        plan = self._ledger.plan
        jobs = [
            Growable(name, attempt.workers, remaining_s)
            for name, attempt in self._running.items()
            if (remaining_s := _remaining_s(attempt)) is not None
        ]
        free, widths = self._free_workers(), allowed_widths(plan.training, self._cluster.workers_at_once())
        efficiency = self._workers.parallel_efficiency
        growth = next_growth(jobs, free, widths, lambda count: speed_up(count, efficiency), self._restart_s)
        if growth is None:
            return
        name, count = growth
        attempt = self._running[name]
        attempt.grow_to = count
        assert attempt.outline.train is not None
        self._ledger.directory.write_note(f"{attempt.outline.train.name}/{GROW_FILE}", attempt.number)
        self._view.line(f"{name}: {count - attempt.workers} free workers join it at its next checkpoint.")

    def _shrink_what_cannot_grow(self) -> None:
        """A job that stopped to grow goes on as it was if the workers were not to be had after all."""
        for name, since in self._growing_since.items():
            if unix_time() - since > _FREED_WITHIN_S:
                self._workers_of[name] = self._planned[name]

    def _left_early(self, attempt: _Attempt, progress: Progress | None) -> bool:
        """Whether an attempt ended because its machine is taken away: no failure, nor a retry if it got further."""
        saved = progress is not None and progress.state == "stopped" and attempt.future.exception() is None
        return saved or self._cluster.loss(attempt.future.exception()) == "preempted"

    def _failure_of(self, attempt: _Attempt) -> Failure:
        """What this attempt wrote of its failure, else what Ray says of the worker's end."""
        error = attempt.future.exception()
        lost = self._cluster.loss(error) is not None
        for stage in attempt.outline.stages:
            path = self._file(stage, FAILURE_FILE)
            failure = _read(Failure, path)
            if failure is not None and failure.attempt == attempt.number:
                retryable = failure.retryable or lost  # what a dying worker says last is not why it died
                message = f"{failure.message} (traceback: {path})"
                return failure.model_copy(update={"message": message, "retryable": retryable})
        last_line = (str(error).strip().splitlines() or [""])[-1][:300]
        lost_how = f"The worker was lost ({type(error).__name__}: {last_line})."
        message = lost_how if error else "It ended early, or without a result."
        return Failure(
            stage=self._ledger.first_open(attempt.outline),
            attempt=attempt.number,
            owner=self._ledger.directory.owner,
            message=message,
            retryable=True,
            traceback=str(error or ""),
            at=unix_time(),
        )

    def _file(self, stage: str, name: str) -> Path:
        return self._ledger.directory.path / stage / name

    def _give_up(self, name: str, reason: str) -> None:
        self._budgets[name].failed = reason
        self._ledger.mark(self._ledger.first_open(self._jobs[name]), "failed", reason)
        self._view.line(f"{name}: failed. {reason}")

    def _note_waiting(self, decision: Decision) -> None:
        if not decision.waiting or decision.start or self._running:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = unix_time()
        if decision.waiting:
            waited = f", {unix_time() - self._waiting_since:.0f} s so far" if self._waiting_since else ""
            self._view.waiting(
                f"{self._described(decision.waiting)}; "
                f"free: {self._cluster.describe_free()} (at most {self._workers.wait_limit_s:.0f} s{waited})."
            )

    def _described(self, names: Sequence[str]) -> str:
        """Who waits for what."""
        one = replace(self._cluster.request, processes=1)
        wider = [f"{name} for {self._workers_of[name]} workers" for name in names if self._workers_of[name] > 1]
        waiting = f"{', '.join(names)}: waiting for {one} each"
        return f"{waiting} ({', '.join(wider)})" if wider else waiting

    def _stop(self, interrupts: Interrupts) -> None:
        """Ask the workers to save and stop, and wait for those at work; a second interrupt does not wait."""
        self._view.line("Stopping: the workers save their state (Ctrl-C again: at once) ...")
        self._ledger.directory.ask_to_stop()
        deadline = time.monotonic() + self._ledger.plan.checkpointing.stop_limit_s
        at_work = [attempt for attempt in self._running.values() if attempt.progress is not None]
        while not all(attempt.future.done() for attempt in at_work):
            if interrupts.insisted or time.monotonic() > deadline:
                self._view.line("Not waiting any longer; the last checkpoints stay.")
                break
            time.sleep(_POLL_S)
        self._ledger.collect_results(self._outlines())
        for name, record in self._ledger.manifest.stages.items():
            if record.status == "running":
                self._ledger.mark(name, "pending", "stopped")
        raise RunStopped(f"Stopped. Go on with: {self._how_to_go_on()}")

    def _raise_if_failed(self) -> None:
        failed = {name: budget.failed for name, budget in self._budgets.items() if budget.failed}
        if failed:
            lines = "\n".join(f"  - {name}: {reason}" for name, reason in failed.items())
            raise RunFailed(
                f"{len(failed)} of {len(self._jobs)} jobs failed; what the others completed is saved:\n{lines}\n"
                f"When the cause is gone: {self._how_to_go_on()}"
            )

    def _how_to_go_on(self) -> str:
        return f"ebdiff resume {self._ledger.directory.short_location}"


def _saved(attempt: _Attempt, progress: Progress | None) -> tuple[int, int]:
    """The stage and the step up to which an attempt that has ended is known to be saved."""
    if progress is None or progress.state == "starting":
        return (0, 0)
    step = progress.step if progress.state == "stopped" else progress.first_step
    return (attempt.outline.stages.index(progress.stage), step)


def _remaining_s(attempt: _Attempt) -> float | None:
    """How long a training would still take with its workers; None for what is not training, or not known yet."""
    progress, train = attempt.progress, attempt.outline.train
    if train is None or progress is None or progress.stage != train.name or progress.state != "running":
        return None
    return (train.steps - progress.step) / progress.steps_per_s if progress.steps_per_s else None


def _read(model: type[_Model], path: Path) -> _Model | None:
    """A small file that another process replaces as it goes; None if it is not there, or not there yet."""
    try:
        return model.model_validate_json(path.read_text())
    except (OSError, ValueError):
        return None
