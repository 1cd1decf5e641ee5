"""The executor on a Ray cluster: what is free there, and running jobs and functions on it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ebdiff_orchestrator.cluster.executor import Executor, Loss, NodeAnswer, Request, too_late, workers_on_node
from ebdiff_orchestrator.cluster.workers import start_actor, trainer_of
from schemas.errors import RunFailed, UserError
from schemas.job import WorkerJob

_LOOK_S = 1.0
_ASK_LIMIT_S = 180.0  # for a function on each node: a process starts there, torch may ask CUDA


class RayExecutor(Executor):
    """A connection to Ray, made by `connect`."""

    poll_s = 0.5

    def __init__(self, embedded: bool, request: Request, retries: int = 2, wait_limit_s: float = 3600.0) -> None:
        self.on_this_machine, self.request = embedded, request
        self._retries, self._wait_limit_s = retries, wait_limit_s
        self._jobs: dict[str, _Job] = {}

    def has_ended(self) -> bool:
        """Whether this program's own Ray has lost its only node, which never comes back; another cluster's may."""
        return self.on_this_machine and not any(node["Alive"] for node in ray.nodes())

    def workers_at_once(self) -> int:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(workers_on_node(self.request, node) for node in nodes)

    def free_workers(self) -> int:
        """See Executor: without those that were started and have not yet taken their place."""
        free = ray.available_resources()
        workers = free.get("CPU", 0.0) / self.request.cpus
        if self.request.gpus:
            workers = min(workers, free.get("GPU", 0.0) / self.request.gpus)
        jobs = list(self._jobs.values())
        held, promised = sum(job.workers for job in jobs), sum(job.workers for job in jobs if not job.has_place)
        return max(0, min(int(workers + 1e-6) - promised, self.workers_at_once() - held))

    def describe_free(self) -> str:
        free, total = ray.available_resources(), ray.cluster_resources()
        kinds = ["CPU", "GPU"] if self.request.gpus else ["CPU"]
        return ", ".join(f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}" for kind in kinds)

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        """See Executor: one worker runs as an actor, several on a TorchTrainer."""
        future: Future[None] = Future()
        known = self._jobs[job.name] = _Job(workers)
        Thread(target=self._run, args=(job, known, future), name=f"run {job.name}", daemon=True).start()
        return future

    def cancel(self, job_name: str) -> None:
        if job_name in self._jobs:
            self._jobs[job_name].cancel()

    def has_started(self, job_name: str) -> None:
        if job_name in self._jobs:
            self._jobs[job_name].has_place = True

    def run_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """See Executor. A call whose worker dies is made again, `workers.retries` times.

        UserError if the cluster cannot hold one worker; RunFailed if none comes free within `workers.wait_limit_s`, if
        all nodes are lost and none comes for as long, or if Ray ends. Few calls are handed out ahead, so that results
        do not pile up where nobody has asked for them yet.
        """
        if not self.workers_at_once():
            have = self.describe_free()
            raise UserError(
                f"The cluster cannot hold one worker of {self.request} ({have}). Lower workers.gpus or cpus."
            )
        self._wait_for(self.free_workers)
        options = {"num_cpus": self.request.cpus, "num_gpus": min(self.request.gpus, 1.0)}
        task = ray.remote(max_retries=self._retries, **options)(function)
        waiting = deque(enumerate(calls))
        pending: dict[Any, int] = {}
        try:
            while waiting or pending:
                while waiting and len(pending) < 2 * max(1, self.workers_at_once()):
                    index, call = waiting.popleft()
                    pending[task.remote(*call)] = index
                ended, _ = ray.wait(list(pending), num_returns=1, timeout=_LOOK_S)
                if not ended:
                    self._wait_for(self.workers_at_once)
                for each in ended:
                    yield pending.pop(each), _result_of(each)
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)

    def _wait_for(self, count_workers: Callable[[], int]) -> None:
        """Wait until there is one, with a limit."""
        deadline = time.monotonic() + self._wait_limit_s
        while not count_workers():
            if self.has_ended():
                raise RunFailed("The Ray of this command has ended. The same command goes on from what is saved.")
            if time.monotonic() > deadline:
                raise RunFailed(too_late(self, self.request, self._wait_limit_s))
            time.sleep(_LOOK_S)

    def loss(self, error: BaseException | None) -> Loss | None:
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

    def on_each_node(self, function: Callable[..., Any], *arguments: Any) -> list[NodeAnswer]:
        """See Executor: on all at the same time, for at most `_ASK_LIMIT_S`."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        task = ray.remote(num_cpus=0, max_retries=0)(function)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        asked = [task.options(scheduling_strategy=place).remote(*arguments) for place in places]
        ended, late = ray.wait(asked, num_returns=len(asked), timeout=_ASK_LIMIT_S)
        for each in late:
            ray.cancel(each, force=True)
        return [_answer(node, task, task in ended) for node, task in zip(nodes, asked, strict=True)]

    def _run(self, job: WorkerJob, known: _Job, future: Future[None]) -> None:
        error: BaseException | None = None
        try:
            if known.workers == 1:
                actor = start_actor(self.request)
                known.ends_with(actor)
                ray.get(actor.run.remote(job.model_dump_json()))
            else:
                request = replace(self.request, processes=known.workers)
                trainer_of(job, request, known.ends_with).fit()
        except BaseException as raised:  # noqa: BLE001 - handed to whoever reads the future
            error = raised
        known.actor = None
        if self._jobs.get(job.name) is known:  # else it has been started anew since it was cancelled
            del self._jobs[job.name]
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error.with_traceback(None))  # its frames would keep the actor, and its place, alive


@dataclass
class _Job:
    """A job under way: how many workers it holds, and whether Ray counts them among what is taken.

    `actor`: what the job ends with, its only worker or its trainer's controller; None before it is there.
    """

    workers: int
    has_place: bool = False
    actor: Any = None
    is_cancelled: bool = False

    def cancel(self) -> None:
        """End it now, or as soon as there is something to be ended."""
        self.is_cancelled = True
        self._end_if_cancelled()

    def ends_with(self, actor: Any) -> None:
        self.actor = actor
        self._end_if_cancelled()

    def _end_if_cancelled(self) -> None:
        actor = self.actor  # the job may end just now
        if self.is_cancelled and actor is not None:
            ray.kill(actor, no_restart=True)


def _result_of(call: Any) -> Any:
    """What an ended call returned. What broke it is told in its own words, or in one line: Ray's are a traceback."""
    try:
        return ray.get(call)
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, RunFailed | UserError):
            raise cause from error
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise RunFailed(f"A worker failed ({reason[0]}). The same command goes on from what is saved.") from error


def _answer(node: Mapping[str, Any], task: Any, ended: bool) -> NodeAnswer:
    name, value, problem = f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})", None, None
    try:
        if ended:
            value = ray.get(task)
        else:
            problem = f"no answer within {_ASK_LIMIT_S:.0f} s"
    except RayError as error:
        problem = str(error).strip().splitlines()[-1]
    return NodeAnswer(name, node["Resources"], value, problem)
