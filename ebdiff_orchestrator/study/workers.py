"""One executor that several runs use at a time, each as if it were its own."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from itertools import takewhile
from threading import Lock, RLock
from typing import Any

from ebdiff_orchestrator.cluster.executor import Executor, Loss, NodeAnswer, ThisProcess
from schemas.job import WorkerJob

_LOOK_S = 1.0


class SharedWorkers:
    """The executor of a study, lent to each of its runs."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.turn = RLock()
        self._counting = Lock()
        self._held: Counter[str] = Counter()  # by run: jobs under way and calls of functions
        self._waiting: Counter[str] = Counter()  # by run: calls of functions
        self._lacking: dict[str, bool] = {}  # by run, in the order of their beginning: whether a job waits for workers
        self._jobs: dict[str, Future[None]] = {}

    def has_room(self, runs_at_work: int) -> bool:
        """Whether one more run would find the workers of a job; in this process one run follows another."""
        if isinstance(self.executor, ThisProcess):
            return runs_at_work == 0
        return self.free_for_jobs() >= self.executor.request.processes

    def free_for_jobs(self, run: str | None = None) -> int:
        """The free workers that the run, or one that is still to begin, may take.

        None while a run that began earlier waits for some, and none of those that runs wait for to be finished or
        measured: so runs end in the order of their beginning, and what is trained is shown first.
        """
        with self._counting:
            earlier = takewhile(lambda item: item[0] != run, self._lacking.items())
            if any(lacks for _, lacks in earlier):
                return 0
            waiting = sum(self._waiting.values())
        return max(0, self.executor.free_workers() - waiting)

    def note_waiting(self, run: str, waits: bool) -> None:
        """Note whether a job of the run waits for workers; at first, that the run begins."""
        with self._counting:
            self._lacking[run] = waits

    def wait_for_turn(self, run: str) -> None:
        """Wait, without a limit, while other runs hold all workers."""
        self._count(self._waiting, run, 1)
        try:
            while self.others_at_work(run) and not self.executor.free_workers():
                time.sleep(_LOOK_S)
        finally:
            self._count(self._waiting, run, -1)

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        """As the executor, and known here until `end_jobs`."""
        future = self._jobs[job.name] = self.executor.run_job(job, workers)
        return future

    def end_jobs(self, limit_s: float) -> None:
        """End what stopped runs have left, as workers that were still starting, and wait until they have ended.

        A thread that reaches Ray when that is shut down makes Ray end the whole process.
        """
        left = {name: future for name, future in self._jobs.items() if not future.done()}
        for name in left:
            self.executor.cancel(name)
        wait(left.values(), timeout=limit_s)

    def count(self, run: str, more: int) -> None:
        """Note that a run holds more, or less."""
        self._count(self._held, run, more)

    def others_at_work(self, run: str) -> bool:
        """Whether another run holds workers."""
        with self._counting:
            return any(held > 0 for name, held in self._held.items() if name != run)

    def _count(self, counter: Counter[str], run: str, more: int) -> None:
        with self._counting:
            counter[run] += more


class LentWorkers(Executor):
    """What a run has of the shared executor: its jobs are known there by the run's name too.

    `is_in_use`: whether the run is as far as looking for workers.
    """

    on_this_machine = False  # not for this run alone: its images are sampled by a worker, not beside other runs' here

    def __init__(self, run: str, shared: SharedWorkers) -> None:
        self._run, self._shared, self._inner = run, shared, shared.executor
        self.request, self.poll_s = self._inner.request, self._inner.poll_s
        self.is_in_use = False
        self.note_waiting(False)

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        self._shared.count(self._run, 1)
        future = self._shared.run_job(job.model_copy(update={"name": self._name(job.name)}), workers)
        future.add_done_callback(lambda _: self._shared.count(self._run, -1))
        return future

    def cancel(self, job_name: str) -> None:
        self._inner.cancel(self._name(job_name))

    def has_started(self, job_name: str) -> None:
        self._inner.has_started(self._name(job_name))

    def run_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """See Executor; while other runs hold all workers, this waits without a limit, and goes before their jobs."""
        self._shared.wait_for_turn(self._run)
        self._shared.count(self._run, 1)
        try:
            yield from self._inner.run_many(function, calls)
        finally:
            self._shared.count(self._run, -1)

    def on_each_node(self, function: Callable[..., Any], *arguments: Any) -> list[NodeAnswer]:
        return self._inner.on_each_node(function, *arguments)

    def workers_at_once(self) -> int:
        return self._inner.workers_at_once()

    def free_workers(self) -> int:
        return self._shared.free_for_jobs(self._run)

    def describe_free(self) -> str:
        return self._inner.describe_free()

    def turn(self) -> AbstractContextManager[object]:
        self.is_in_use = True
        return self._shared.turn

    def note_waiting(self, waits: bool) -> None:
        self._shared.note_waiting(self._run, waits)

    def others_at_work(self) -> bool:
        return self._shared.others_at_work(self._run)

    def has_ended(self) -> bool:
        return self._inner.has_ended()

    def loss(self, error: BaseException | None) -> Loss | None:
        return self._inner.loss(error)

    def _name(self, job: str) -> str:
        return f"{self._run} {job}"
