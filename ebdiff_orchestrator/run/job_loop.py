"""The loop over jobs: carries out what `decide` says, watches the workers, and collects what they leave."""

import time
from collections.abc import Mapping
from concurrent.futures import wait
from contextlib import nullcontext, suppress
from dataclasses import replace

from ebdiff_orchestrator.cluster.executor import Executor, too_late, waiting_for
from ebdiff_orchestrator.run.attempts import (
    Attempt,
    Budget,
    Next,
    failure_of,
    progress_of,
    raise_if_failed,
    what_follows,
)
from ebdiff_orchestrator.run.decide import Decision, next_jobs
from ebdiff_orchestrator.run.growth import Growth
from ebdiff_orchestrator.run.interrupts import Interrupts
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.stages import JobOutline, inputs_of, worker_job
from ebdiff_orchestrator.run.view import View
from schemas.errors import RunFailed, RunStopped, command
from schemas.job import GROW_FILE, STOP_FILE, Progress
from schemas.manifest import RAY_FOLDER
from schemas.process import unix_time

_END_S = 5.0
_RECORD_USAGE_EVERY_S = 30.0  # so that a killed driver loses little of it


class JobLoop:
    """The jobs of one launch.

    `placement` says in which order jobs start and how many workers each gets, and the most that all hold together.
    `interrupts`: where to look for them; None: this loop notes them itself.
    """

    def __init__(
        self,
        jobs: tuple[JobOutline, ...],
        placement: tuple[Mapping[str, int], int],
        ledger: Ledger,
        executor: Executor,
        view: View,
        interrupts: Interrupts | None = None,
    ) -> None:
        self._interrupts = interrupts
        self._jobs = {job.name: job for job in jobs}
        workers_of, self._limit = placement
        self._ledger, self._executor, self._view = ledger, executor, view
        self._plan = ledger.plan
        self._growth = Growth(ledger.plan, workers_of)
        self._budgets = {job.name: Budget() for job in jobs}
        self._running: dict[str, Attempt] = {}
        self._given_up: list[int] = []
        self._waiting_since: float | None = None
        self._alone_since = 0.0

    def run(self) -> None:
        """Start, watch and collect until no job is open.

        Raises RunStopped when interrupted, and RunFailed if jobs failed for good, after the others are done, or if the
        executor has ended.
        """
        try:
            with nullcontext(self._interrupts) if self._interrupts else Interrupts() as interrupts:
                while True:
                    self._check_whether_to_go_on(interrupts)
                    with self._executor.turn():
                        decision = self._decide()
                        self._give_up_what_cannot_run(decision)
                        for name in decision.start:
                            self._start(name)
                        self._executor.note_waiting(self._waits_for_others(decision))
                    if decision.finished and not self._running:
                        break
                    self._tell_who_waits(decision)
                    self._grow(decision)
                    time.sleep(self._executor.poll_s)
                    self._watch()
                    self._collect()
        finally:
            for attempt in self._running.values():
                self._record_usage(attempt)
        with suppress(OSError):  # Ray may be about to write there
            self._ledger.directory.discard(RAY_FOLDER)
        raise_if_failed(self._budgets, self._how_to_go_on())

    def _check_whether_to_go_on(self, interrupts: Interrupts) -> None:
        if interrupts.requested:
            self._stop(interrupts)
        if self._executor.has_ended():
            raise RunFailed(f"The Ray of this run has ended; what is saved stays. Go on with: {self._how_to_go_on()}")

    def _decide(self) -> Decision:
        self._growth.shrink_what_cannot_grow()
        failed = frozenset(name for name, budget in self._budgets.items() if budget.failed)
        waited_s = unix_time() - self._waiting_since if self._waiting_since else 0.0
        return next_jobs(
            tuple(self._jobs.values()),
            self._growth.workers_of,
            done_stages=self._ledger.done_stages(),
            running=frozenset(self._running),
            failed=failed,
            free_workers=self._free_workers(),
            waited_s=waited_s,
            wait_limit_s=self._plan.workers.wait_limit_s,
        )

    def _free_workers(self) -> int:
        return min(self._executor.free_workers(), self._limit - self._held())

    def _waits_for_others(self, decision: Decision) -> bool:
        """Whether a job lacks workers, and not because the run has all that it may hold."""
        waiting = decision.waiting
        return bool(waiting) and self._held() + self._growth.workers_of[waiting[0]] <= self._limit

    def _held(self) -> int:
        return sum(attempt.workers for attempt in self._running.values())

    def _give_up_what_cannot_run(self, decision: Decision) -> None:
        for name, reason in decision.give_up.items():
            self._give_up(name, reason)
        for name in decision.late:
            request = replace(self._executor.request, processes=self._growth.workers_of[name])
            self._give_up(name, too_late(self._executor, request, self._plan.workers.wait_limit_s))

    def _start(self, name: str) -> None:
        outline, budget, workers = self._jobs[name], self._budgets[name], self._growth.workers_of[name]
        joins = self._growth.ends_for(name)
        budget.attempts += not joins
        number = self._ledger.begin_attempt(outline)
        directory, use_gpu = self._ledger.directory, self._executor.request.gpus > 0
        inputs, owner = inputs_of(self._ledger.manifest), directory.owner
        job = worker_job(self._plan, outline, directory.location, inputs, number, use_gpu, owner)
        self._running[name] = Attempt(outline, number, workers, self._executor.run_job(job, workers), unix_time())
        how = f"goes on with {workers} workers" if joins else f"started (attempt {budget.attempts})"
        self._view.line(f"{name}: {how}.")
        starting = Progress(stage=self._ledger.first_open(outline), state="starting", updated_at=unix_time())
        self._view.job(name, starting)

    def _grow(self, decision: Decision) -> None:
        """Ask the training that would end last to stop at its next checkpoint, to go on with the free workers too."""
        if decision.waiting or not self._plan.workers.elastic:
            return
        at_once = self._executor.workers_at_once()
        attempt = self._growth.next(self._running.values(), self._free_workers(), at_once)
        if attempt is not None and attempt.outline.train is not None and attempt.grow_to is not None:
            self._ledger.directory.write_note(f"{attempt.outline.train.name}/{GROW_FILE}", attempt.number)
            more = attempt.grow_to - attempt.workers
            self._view.line(f"{attempt.outline.name}: {more} free workers join it at its next checkpoint.")

    def _watch(self) -> None:
        """Read what the workers say of themselves."""
        for name, attempt in list(self._running.items()):
            if unix_time() - attempt.recorded_at > _RECORD_USAGE_EVERY_S:
                self._record_usage(attempt)
            progress = progress_of(attempt, self._ledger.directory)
            if progress is None:
                self._give_up_if_late(name, attempt)
                continue
            if attempt.progress is None:
                self._executor.has_started(name)
            begins = attempt.progress is None or attempt.progress.state == "starting"
            attempt.progress = progress
            if begins and progress.state == "running":
                self._growth.saw_start(attempt)
                self._budgets[name].begins_at(attempt.begun_at())
            self._ledger.mark_running(attempt.outline, progress)
            self._view.job(name, progress)

    def _give_up_if_late(self, name: str, attempt: Attempt) -> None:
        """Give up a job that has not been placed in time; the others go on."""
        limit = self._plan.workers.wait_limit_s
        if self._executor.others_at_work():
            self._alone_since = unix_time()
        if unix_time() - max(attempt.started_at, self._alone_since) > limit and not attempt.future.done():
            del self._running[name]
            self._given_up.append(attempt.number)
            self._ledger.directory.write_note(STOP_FILE, *self._given_up)  # should one of its workers begin after all
            self._executor.cancel(name)
            late = f"Given to Ray, but no worker began within workers.wait_limit_s = {limit:.0f} s; see `ray status`."
            self._give_up(name, late)

    def _collect(self) -> None:
        """Enter what is finished; see which attempts have ended, and what follows."""
        self._ledger.collect_results(tuple(self._jobs.values()))
        for name in [name for name, attempt in self._running.items() if attempt.future.done()]:
            attempt = self._running.pop(name)
            self._record_usage(attempt)
            self._ledger.collect_results((attempt.outline,))
            if not self._ledger.all_done((attempt.outline,)):
                attempt.progress = progress_of(attempt, self._ledger.directory)
                if not self._growth.has_stopped_to_grow(attempt):
                    self._follow_up(name, attempt)

    def _follow_up(self, name: str, attempt: Attempt) -> None:
        loss = self._executor.loss(attempt.future.exception())
        failure = failure_of(attempt, self._ledger.directory, loss, self._ledger.first_open(attempt.outline))
        match what_follows(attempt, self._budgets[name], loss, failure, self._plan.workers.retries):
            case Next.GO_ON:
                self._view.line(f"{name}: its machine is taken away; it goes on elsewhere from what is saved.")
            case Next.RETRY:
                self._view.line(f"{name}: {failure.message} Trying again.")
                self._ledger.mark(failure.stage, "pending", failure.message)
            case Next.GIVE_UP:
                self._give_up(name, failure.message)

    def _record_usage(self, attempt: Attempt) -> None:
        """Record the devices that an attempt held, from its start to now."""
        attempt.recorded_at = unix_time()
        gpus = self._executor.request.gpus
        self._ledger.record_usage(attempt.outline.name, attempt.number, attempt.started_at, attempt.workers, gpus)

    def _give_up(self, name: str, reason: str) -> None:
        self._budgets[name].failed = reason
        self._ledger.mark(self._ledger.first_open(self._jobs[name]), "failed", reason)
        self._view.line(f"{name}: failed. {reason}")

    def _tell_who_waits(self, decision: Decision) -> None:
        if not decision.waiting or decision.start or self._running or self._executor.others_at_work():
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = unix_time()
        if decision.waiting:
            waited_s = unix_time() - self._waiting_since if self._waiting_since else None
            workers_of = {name: self._growth.workers_of[name] for name in decision.waiting}
            self._view.waiting(waiting_for(self._executor, workers_of, self._plan.workers.wait_limit_s, waited_s))

    def _stop(self, interrupts: Interrupts) -> None:
        """Ask the workers to save and stop, and wait for those at work; a second interrupt does not wait."""
        self._view.line("Stopping: the workers save their state (Ctrl-C again: at once) ...")
        self._ledger.directory.write_note(STOP_FILE)
        at_work = [attempt.future for attempt in self._running.values() if attempt.progress is not None]
        if not interrupts.wait_for(at_work, self._plan.checkpointing.stop_limit_s, self._executor.poll_s):
            self._view.line("Not waiting any longer; the last checkpoints stay.")
        self._end_what_is_left()
        self._ledger.collect_results(tuple(self._jobs.values()))
        self._ledger.mark_stopped()
        raise RunStopped(f"Stopped. Go on with: {self._how_to_go_on()}")

    def _end_what_is_left(self) -> None:
        """As workers that were still starting: a thread that reaches Ray once that is shut down ends this process."""
        left = {name: attempt.future for name, attempt in self._running.items() if not attempt.future.done()}
        for name in left:
            self._executor.cancel(name)
        wait(left.values(), timeout=_END_S)

    def _how_to_go_on(self) -> str:
        return command("resume", self._ledger.directory.short_location)
