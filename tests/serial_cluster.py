"""A stand-in for Ray that runs each job at once in the test's own process: the driver and the workers are the real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from ebdiff_orchestrator.cluster import Request
from region_workers.worker.run import run_job
from schemas.job import WorkerJob


class SerialCluster:
    """One worker, no waiting; `jobs` counts what was started."""

    embedded = True
    request = Request(processes=1, cpus=1.0, gpus=0.0)

    def __init__(self) -> None:
        self.jobs: list[str] = []

    def free_workers(self) -> int:
        return 1

    def workers_at_once(self) -> int:
        return 1

    def has_ended(self) -> bool:
        return False

    def describe_free(self) -> str:
        return "1 of 1 CPU"

    def has_started(self, job_name: str) -> None:
        return

    def cancel(self, job_name: str) -> None:
        return

    def loss(self, error: BaseException | None) -> None:
        return

    def too_late(self, request: Request) -> str:
        return f"{request} could not be had"

    def start(self, job: WorkerJob, workers: int) -> Future[None]:
        self.jobs.append(job.name)
        future: Future[None] = Future()
        try:
            run_job(job)
        except Exception as error:  # noqa: BLE001 - as a worker's, handed to whoever reads the future
            future.set_exception(error)
        else:
            future.set_result(None)
        return future

    def run_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for index, call in enumerate(calls):
            yield index, function(*call)

    @contextmanager
    def connect(self, *_: Any) -> Iterator[SerialCluster]:
        """In place of `cluster.connect`."""
        yield self
