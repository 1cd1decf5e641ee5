"""Where the work of a run is done: in this process, or by the workers of a Ray cluster; and what a job asks for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from schemas.job import WorkerJob
from schemas.plan import WorkersPlan

THIS_MACHINE = "this machine"

Loss = Literal["died", "preempted"]


@dataclass(frozen=True)
class Request:
    """What one job asks for: `processes` workers of `cpus` CPUs and `gpus` GPUs each."""

    processes: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        each = f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        return each if self.processes == 1 else f"{self.processes} workers of {each}"


@dataclass(frozen=True)
class NodeAnswer:
    """What a function returned on one node, or the `problem` that kept it from running there."""

    node: str
    resources: Mapping[str, float]
    value: Any
    problem: str | None


class Executor(Protocol):
    """Runs jobs and functions. `launch` and `evaluate` take one; without it they use Ray."""

    on_this_machine: bool  # its workers are on this machine, and here for this program alone
    request: Request  # what one job asks for
    poll_s: float  # how often to look at how its jobs stand

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        """Start a job on so many workers; the future ends as the job does."""

    def cancel(self, job_name: str) -> None:
        """End a job, also one that still waits for its workers."""

    def has_started(self, job_name: str) -> None:
        """Take note that a job was seen at work: what it holds is no longer counted among what is free."""

    def run_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Run `function(*call)` for every call, a worker each, as many at once as fit; (index, result) as they end.

        What the function raises is raised here; RunFailed where no worker comes free, or all are lost.
        """

    def on_each_node(self, function: Callable[..., Any], *arguments: Any) -> list[NodeAnswer]:
        """Run a function once on every node, whatever is free there."""

    def workers_at_once(self) -> int:
        """How many workers there are room for."""

    def free_workers(self) -> int:
        """How many more workers could start now."""

    def describe_free(self) -> str:
        """For people: what is free, of how much."""

    def turn(self) -> AbstractContextManager[object]:
        """Keep other runs of this program from starting jobs meanwhile, so that workers seen to be free stay free."""
        return nullcontext()

    def note_waiting(self, waits: bool) -> None:
        """Take note of whether a job of the run waits for workers that it does not hold itself."""
        return  # no other run shares this executor

    def others_at_work(self) -> bool:
        """Whether other runs of this program hold workers, which they will give back: to wait for them is no fault."""
        return False

    def has_ended(self) -> bool:
        """Whether no work can be done any more."""
        return False

    def loss(self, error: BaseException | None) -> Loss | None:
        """Whether a job that ended with this error lost its machine, and how; None if its own program failed."""
        return None


class ThisProcess(Executor):
    """One worker: this process. What it is given has ended when the call returns."""

    on_this_machine = True
    poll_s = 0.0

    def __init__(self, gpus: float = 0.0) -> None:
        self.request = Request(processes=1, cpus=1.0, gpus=gpus)

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
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
        """Nothing is left to be ended."""

    def has_started(self, job_name: str) -> None:
        """Nothing is counted."""

    def run_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for index, call in enumerate(calls):
            yield index, function(*call)

    def on_each_node(self, function: Callable[..., Any], *arguments: Any) -> list[NodeAnswer]:
        return [NodeAnswer(THIS_MACHINE, {}, function(*arguments), None)]

    def workers_at_once(self) -> int:
        return 1

    def free_workers(self) -> int:
        return 1

    def describe_free(self) -> str:
        return "1 of 1 process"


def workers_on_node(request: Request, resources: Mapping[str, float]) -> int:
    """How many workers of the request one node holds; a fraction of a GPU cannot be put together from two."""
    fit = int(resources.get("CPU", 0.0) / request.cpus + 1e-6)
    if request.gpus:
        a_gpu = int(1 / request.gpus + 1e-6)
        fit = min(fit, int(resources.get("GPU", 0.0)) * a_gpu)
    return fit


def request_of(workers: WorkersPlan, gpus_in_cluster: float) -> Request:
    """What a job asks for under this plan: `gpus: auto` is one GPU if the cluster has any."""
    gpus = (1.0 if gpus_in_cluster else 0.0) if workers.gpus == "auto" else float(workers.gpus)
    if gpus > 1:
        return Request(processes=int(gpus), cpus=workers.cpus, gpus=1.0)
    return Request(processes=1 if gpus else workers.processes, cpus=workers.cpus, gpus=gpus)


def run_one(executor: Executor, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns on one worker."""
    [(_, result)] = executor.run_many(function, [arguments])
    return result


def waiting_for(executor: Executor, workers_of: Mapping[str, int], wait_limit_s: float, waited_s: float | None) -> str:
    """For people: which jobs wait for how many workers, and for how long."""
    wider = [f"{name} for {count} workers" for name, count in workers_of.items() if count > 1]
    waiting = f"{', '.join(workers_of)}: waiting for {replace(executor.request, processes=1)} each"
    waiting += f" ({', '.join(wider)})" if wider else ""
    so_far = f", {waited_s:.0f} s so far" if waited_s is not None else ""
    return f"{waiting}; free: {executor.describe_free()} (at most {wait_limit_s:.0f} s{so_far})."


def too_late(executor: Executor, request: Request, wait_limit_s: float) -> str:
    """For people: a request has waited for too long."""
    kinds = "workers.gpus or workers.cpus" if request.gpus else "workers.cpus"
    return (
        f"{request} asked for, but the cluster has {executor.describe_free()} free, and that for "
        f"workers.wait_limit_s = {wait_limit_s:.0f} s. Lower {kinds}, set placement: packed, add nodes, or raise "
        "workers.wait_limit_s."
    )
