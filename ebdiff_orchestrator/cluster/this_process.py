"""The executor that needs no Ray: everything is done in this process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from ebdiff_orchestrator.cluster.executor import Loss, NodeAnswer
from ebdiff_orchestrator.cluster.request import Request
from schemas.job import WorkerJob

THIS_MACHINE = "this machine"


class ThisProcess:
    """One worker: this process. What it is given has ended when the call returns."""

    on_this_machine = True
    poll_s = 0.0

    def __init__(self, gpus: float = 0.0) -> None:
        self.request = Request(processes=1, cpus=1.0, gpus=gpus)

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        """See Executor. Has ended when it returns."""
        from region_workers.worker.run import run_job  # torch, which doctor and status have no use for

        future: Future[None] = Future()
        try:
            run_job(job)
        except Exception as error:  # noqa: BLE001 - as a worker's, handed to whoever reads the future
            future.set_exception(error)
        else:
            future.set_result(None)
        return future

    def cancel(self, job_name: str) -> None:
        """See Executor. Nothing is left to be ended."""

    def has_started(self, job_name: str) -> None:
        """See Executor."""

    def run_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """See Executor."""
        for index, call in enumerate(calls):
            yield index, function(*call)

    def on_each_node(self, function: Callable[..., Any], *arguments: Any) -> list[NodeAnswer]:
        """See Executor."""
        return [NodeAnswer(THIS_MACHINE, {}, function(*arguments), None)]

    def workers_at_once(self) -> int:
        """See Executor."""
        return 1

    def free_workers(self) -> int:
        """See Executor."""
        return 1

    def describe_free(self) -> str:
        """See Executor."""
        return "1 of 1 process"

    def has_ended(self) -> bool:
        """See Executor."""
        return False

    def loss(self, error: BaseException | None) -> Loss | None:
        """See Executor."""
        return None
