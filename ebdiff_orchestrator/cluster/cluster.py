"""A connection to Ray: what is free, and running jobs and functions on it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any, Literal

from ebdiff_orchestrator.cluster.region_actor import start_actor
from ebdiff_orchestrator.cluster.request import Request, workers_on_node
from ebdiff_orchestrator.cluster.trainer import trainer_of
from schemas.errors import RunFailed, UserError
from schemas.job import WorkerJob

_LOOK_S = 1.0
_ASK_LIMIT_S = 180.0  # for a function on each node: a process starts there, torch may ask CUDA

Loss = Literal["died", "preempted"]


@dataclass(frozen=True)
class NodeAnswer:
    """What a function returned on one node, or the `problem` that kept it from running there."""

    node: str
    resources: Mapping[str, float]
    value: Any
    problem: str | None


class Cluster:
    """A connection to Ray, made by `connect`."""

    def __init__(self, embedded: bool, request: Request, retries: int = 2, wait_limit_s: float = 3600.0) -> None:
        self.embedded, self.request = embedded, request
        self.retries, self.wait_limit_s = retries, wait_limit_s
        self._starting: dict[str, int] = {}
        self._started: dict[str, int] = {}
        self._actors: dict[str, Any] = {}

    def capacity(self) -> int:
        """How many jobs the cluster holds at once, by what its nodes have."""
        return self.workers_at_once() // self.request.processes

    def has_ended(self) -> bool:
        """Whether this run's own Ray has lost its only node, which never comes back; another cluster's may."""
        import ray

        return self.embedded and not any(node["Alive"] for node in ray.nodes())

    def workers_at_once(self) -> int:
        """How many single workers of the request's kind the cluster holds at once; each must fit on one node."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(workers_on_node(self.request, node) for node in nodes)

    def free_workers(self) -> int:
        """How many more workers fit now, those that were started but have not yet taken their place counted out."""
        import ray

        free = ray.available_resources()
        workers = free.get("CPU", 0.0) / self.request.cpus
        if self.request.gpus:
            workers = min(workers, free.get("GPU", 0.0) / self.request.gpus)
        held, promised = sum(self._started.values()), sum(self._starting.values())
        return max(0, min(int(workers + 1e-6) - promised, self.workers_at_once() - held))

    def describe_free(self) -> str:
        """For people: what of the requested kinds is free, of how much."""
        import ray

        free, total = ray.available_resources(), ray.cluster_resources()
        kinds = ["CPU", "GPU"] if self.request.gpus else ["CPU"]
        return ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}" for kind in kinds)

    def too_late(self, request: Request) -> str:
        """What to say when a request has waited for too long."""
        kinds = "workers.gpus or workers.cpus" if request.gpus else "workers.cpus"
        return (
            f"{request} asked for, but the cluster has {self.describe_free()} free, and that for "
            f"workers.wait_limit_s = {self.wait_limit_s:.0f} s. Lower {kinds}, set placement: packed, add nodes, or "
            "raise workers.wait_limit_s."
        )

    def start(self, job: WorkerJob, workers: int) -> Future[None]:
        """Run the job: one worker as an actor, several on a TorchTrainer; the future ends as that does."""
        future: Future[None] = Future()
        self._starting[job.name] = self._started[job.name] = workers
        Thread(target=self._run, args=(job, workers, future), name=f"run {job.name}", daemon=True).start()
        return future

    def has_started(self, job_name: str) -> None:
        """Note that a job was seen at work, so that what it holds shows in Ray's own count."""
        self._starting.pop(job_name, None)

    def run_once(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function on one worker's share of the cluster and wait for it.

        RunFailed if that share does not come free within `workers.wait_limit_s`, or Ray ends.
        """
        import ray

        deadline = time.monotonic() + self.wait_limit_s
        while not self.free_workers():
            if time.monotonic() > deadline:
                raise RunFailed(self.too_late(self.request))
            self._raise_if_ended()
            time.sleep(_LOOK_S)
        task = ray.remote(num_cpus=self.request.cpus, num_gpus=min(self.request.gpus, 1.0), max_retries=0)(function)
        asked = task.remote(*arguments)
        while not ray.wait([asked], timeout=_LOOK_S)[0]:
            self._raise_if_ended()
        return ray.get(asked)

    def run_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Run `function(*call)` for every call, as many at once as fit; (index, result) as they end.

        A call whose worker dies is made again, `workers.retries` times; an exception of the function is raised here,
        and RunFailed if Ray ends. Few calls are handed out ahead, so that results do not pile up where nobody has asked
        for them yet.
        """
        import ray

        if not self.workers_at_once():
            have = self.describe_free()
            raise UserError(
                f"The cluster cannot hold one worker of {self.request} ({have}). Lower workers.gpus or cpus."
            )
        options = {"num_cpus": self.request.cpus, "num_gpus": min(self.request.gpus, 1.0)}
        task = ray.remote(max_retries=self.retries, **options)(function)
        waiting = deque(enumerate(calls))
        pending: dict[Any, int] = {}
        try:
            while waiting or pending:
                while waiting and len(pending) < 2 * max(1, self.workers_at_once()):
                    index, call = waiting.popleft()
                    pending[task.remote(*call)] = index
                ended, _ = ray.wait(list(pending), num_returns=1, timeout=_LOOK_S)
                if not ended:
                    self._raise_if_ended()
                for each in ended:
                    yield pending.pop(each), ray.get(each)
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)

    def _raise_if_ended(self) -> None:
        if self.has_ended():
            raise RunFailed("The Ray of this command has ended. The same command goes on from what is saved.")

    def cancel(self, job_name: str) -> None:
        """End a job's only worker, or its waiting for a place; a trainer's workers end with the driver."""
        import ray

        actor = self._actors.get(job_name)
        if actor is not None:
            ray.kill(actor, no_restart=True)

    def loss(self, error: BaseException | None) -> Loss | None:
        """What of the machine ended a job; None where its program did."""
        from ray.exceptions import RayActorError, RayTaskError

        if isinstance(error, RayActorError):
            return "preempted" if error.preempted else "died"
        if error is None or isinstance(error, RayTaskError):
            return None
        from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError

        if isinstance(error, PreemptionError):
            return "preempted"
        if not isinstance(error, WorkerGroupError):
            return None
        causes = [getattr(each, "health_check_failure", each) for each in error.worker_failures.values()]
        died = [cause for cause in causes if isinstance(cause, RayActorError)]
        if any(cause.preempted for cause in died):
            return "preempted"
        return "died" if died else None

    def _run(self, job: WorkerJob, workers: int, future: Future[None]) -> None:
        error: BaseException | None = None
        try:
            if workers == 1:
                self._run_actor(job)
            else:
                trainer_of(job, replace(self.request, processes=workers)).fit()
        except BaseException as raised:  # noqa: BLE001 - handed to whoever reads the future
            error = raised
        self._starting.pop(job.name, None)
        self._started.pop(job.name, None)
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error.with_traceback(None))  # its frames would keep the actor, and its place, alive

    def _run_actor(self, job: WorkerJob) -> None:
        import ray

        actor = self._actors[job.name] = start_actor(self.request)
        try:
            ray.get(actor.run.remote(job.model_dump_json()))
        finally:
            del self._actors[job.name]

    def on_each_node(self, function: Callable[..., Any], *arguments: Any) -> list[NodeAnswer]:
        """Run a function once on every node, whatever is free there, at the same time; at most `_ASK_LIMIT_S`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in ray.nodes() if node["Alive"]]
        task = ray.remote(num_cpus=0, max_retries=0)(function)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        asked = [task.options(scheduling_strategy=place).remote(*arguments) for place in places]
        ended = set(ray.wait(asked, num_returns=len(asked), timeout=_ASK_LIMIT_S)[0])
        return [_answer(node, task, task in ended) for node, task in zip(nodes, asked, strict=True)]


def _answer(node: Mapping[str, Any], task: Any, ended: bool) -> NodeAnswer:
    import ray

    name, value, problem = f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})", None, None
    try:
        if ended:
            value = ray.get(task)
        else:
            problem = f"no answer within {_ASK_LIMIT_S:.0f} s"
    except ray.exceptions.RayError as error:
        problem = str(error).strip().splitlines()[-1]
    return NodeAnswer(name, node["Resources"], value, problem)
