"""The only place that imports ray: connecting, asking what is free, and running one job on its own trainer."""

from __future__ import annotations

import atexit
import logging
import math
import os
import secrets
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any, ClassVar, Literal

from schemas.digest import digest
from schemas.errors import RunFailed, UserError, plan_error
from schemas.job import WorkerJob
from schemas.location import object_url
from schemas.plan import WorkersPlan

_STARTS = 3
_LOOK_S = 1.0
_NOTICE_S = 5.0
_ASK_LIMIT_S = 180.0  # for a function on each node: a process starts there, torch may ask CUDA
RAY_FOLDER = ".ray"  # Ray Train wants a place of its own; nothing in it is read
_EMBEDDED_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine
    "RAY_worker_niceness": "0",  # a busy desktop would starve workers at Ray's default of 15
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_AUTH_MODE": "token",
}
_WORKER_ENV = {
    "OMP_WAIT_POLICY": "passive",  # idle threads that spin slow the neighbours on shared cores
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


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


class Cluster:
    """A connection to Ray, made by `connect`."""

    def __init__(self, embedded: bool, request: Request, retries: int = 2, wait_limit_s: float = 3600.0) -> None:
        self.embedded, self.request = embedded, request
        self.retries, self.wait_limit_s = retries, wait_limit_s
        self._starting: dict[str, int] = {}
        self._started: dict[str, int] = {}

    def capacity(self) -> int:
        """How many jobs the cluster holds at once, by what its nodes have."""
        return self.workers_at_once() // self.request.processes

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
        """Run the job on a TorchTrainer of its own; the future ends as the trainer's `fit()` does."""
        future: Future[None] = Future()
        self._starting[job.name] = self._started[job.name] = workers
        Thread(target=self._fit, args=(job, workers, future), name=f"fit {job.name}", daemon=True).start()
        return future

    def has_started(self, job_name: str) -> None:
        """Note that a job was seen at work, so that what it holds shows in Ray's own count."""
        self._starting.pop(job_name, None)

    def run_once(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function on one worker's share of the cluster and wait for it.

        RunFailed if that share does not come free within `workers.wait_limit_s`.
        """
        import ray

        deadline = time.monotonic() + self.wait_limit_s
        while not self.free_workers():
            if time.monotonic() > deadline:
                raise RunFailed(self.too_late(self.request))
            time.sleep(_LOOK_S)
        task = ray.remote(num_cpus=self.request.cpus, num_gpus=min(self.request.gpus, 1.0), max_retries=0)(function)
        return ray.get(task.remote(*arguments))

    def run_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Run `function(*call)` for every call, as many at once as fit; (index, result) as they end.

        A call whose worker dies is made again, `workers.retries` times; an exception of the function is raised here.
        Few calls are handed out ahead, so that results do not pile up where nobody has asked for them yet.
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
                (ended,), _ = ray.wait(list(pending), num_returns=1)
                yield pending.pop(ended), ray.get(ended)
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)

    def loss(self, error: BaseException | None) -> Loss | None:
        """What of the machine ended a trainer; None where its program did."""
        from ray.exceptions import RayActorError
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

    def _fit(self, job: WorkerJob, workers: int, future: Future[None]) -> None:
        error: BaseException | None = None
        try:
            _trainer(job, replace(self.request, processes=workers)).fit()
        except BaseException as raised:  # noqa: BLE001 - handed to whoever reads the future
            error = raised
        self._starting.pop(job.name, None)
        self._started.pop(job.name, None)
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

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


def cluster_address(address: str | None) -> str | None:
    """The cluster to join: the one named, else RAY_ADDRESS; None for an embedded Ray."""
    return address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def connect(workers: WorkersPlan, jobs: int, address: str | None = None) -> Iterator[Cluster]:
    """Join the cluster at `address` or in RAY_ADDRESS (set under `ray job submit`), else start an embedded one.

    A program that is connected to Ray already stays so.

    The embedded Ray asks for a token made for this run, has no dashboard, and has room for all `jobs` at once.
    """
    address = cluster_address(address)
    _prepare_environment(address)
    early = _EarlyStart.begun
    if early is None or not early.taken_over(workers, jobs, address):
        import ray

        if ray.is_initialized():  # a program that has its own connection keeps it
            yield _cluster(workers, embedded=False)
            return
        try:
            _init(workers, jobs, address)
        except ConnectionError as error:
            check = "Check the address, that it is up, and that RAY_AUTH_MODE and the token here are as there."
            reason = f"cannot connect ({error}). {check}"
            raise UserError(f"Ray at {address}: {reason}") from None
    _take_back_sigterm()
    try:
        yield _cluster(workers, embedded=not address)
    finally:
        _shut_down()


def _take_back_sigterm() -> None:
    """Ray's core puts a handler before the program's own, which prints a stack and aborts the process after 3 s."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def start_early(workers: WorkersPlan, jobs: int, address: str | None = None) -> None:
    """Start the embedded Ray, if one will be needed, while the program goes on; `connect` with the same finds it."""
    if cluster_address(address) is None:
        _prepare_environment(None)
        _EarlyStart(workers, jobs).start()


class _EarlyStart(Thread):
    """Starts the embedded Ray in the background; shut down when the program ends, if nobody has taken it over.

    The thread outlives its work: Ray's processes die with the thread that started them.
    """

    begun: ClassVar[_EarlyStart | None] = None

    def __init__(self, workers: WorkersPlan, jobs: int) -> None:
        super().__init__(name="start Ray", daemon=True)
        self._asked = (workers, jobs, None)
        self._error: Exception | None = None
        self._ready = Event()
        type(self).begun = self
        atexit.register(self._end)

    def run(self) -> None:
        """Keep an error for whoever takes over."""
        try:
            _init(*self._asked)
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error
        self._ready.set()
        Event().wait()

    def taken_over(self, workers: WorkersPlan, jobs: int, address: str | None) -> bool:
        """Wait until Ray is up; False, with Ray shut down, if it was started for something else."""
        self._ready.wait()
        type(self).begun = None
        if self._error is not None:
            raise self._error
        fits = self._asked == (workers, jobs, address)
        if not fits:
            _shut_down()
        return fits

    def _end(self) -> None:
        if type(self).begun is self:
            self._ready.wait()
            _shut_down()


def _prepare_environment(address: str | None) -> None:
    _quiet()
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    if not address:
        for name, value in (_EMBEDDED_ENV | _WORKER_ENV).items():  # workers inherit it; a runtime_env starts slower
            os.environ.setdefault(name, value)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _shut_down() -> None:
    import ray

    ray.shutdown()


def _cluster(workers: WorkersPlan, embedded: bool) -> Cluster:
    import ray

    request = request_of(workers, ray.cluster_resources().get("GPU", 0.0))
    cluster = Cluster(embedded, request, workers.retries, workers.wait_limit_s)
    if embedded and not any(node["Alive"] for node in ray.nodes()):
        raise RunFailed("The Ray of this run ended before anything could start. The same command goes on.")
    if embedded and not cluster.capacity():
        free = cluster.describe_free()
        raise plan_error("workers.gpus", workers.gpus, f"what this machine has ({free})", "Lower it, or use auto.")
    return cluster


def _init(workers: WorkersPlan, jobs: int, address: str | None) -> None:
    import ray

    options: dict[str, Any] = {
        "log_to_driver": False,  # workers report through their run's files
        "logging_level": logging.ERROR,
    }
    if address:
        ray.init(address=address, runtime_env={"env_vars": _WORKER_ENV}, **options)
        return
    processes = request_of(workers, 0.0).processes
    cpus = max(os.cpu_count() or 1, math.ceil(jobs * processes * workers.cpus))
    # A job is a controller, workers and helpers: on few cores Ray would warn that so many processes start at once.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(16, 8 * jobs * processes)))
    for attempt in range(_STARTS):
        try:
            ray.init("local", num_cpus=cpus, include_dashboard=False, **options)  # not one that happens to run here
            return
        except Exception as error:
            if "timed out" not in str(error) or attempt + 1 == _STARTS:
                raise
            ray.shutdown()  # a busy machine: Ray's own limit for its processes has no setting that suits all


def _trainer(job: WorkerJob, request: Request) -> Any:
    """A trainer under a name of its own: our checkpoints are the truth, so Ray's must never be resumed."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": request.cpus} | ({"GPU": request.gpus} if request.gpus else {})
    return TorchTrainer(
        _work,
        train_loop_config={"job": job.model_dump_json()},
        scaling_config=ScalingConfig(
            num_workers=request.processes, use_gpu=request.gpus > 0, resources_per_worker=resources
        ),
        torch_config=TorchConfig(timeout_s=math.ceil(job.hang_limit_s)),
        run_config=RunConfig(
            name=f"{job.name.replace(' ', '-')}-{job.attempt}-{secrets.token_hex(4)}",
            storage_path=_ray_folder(job.run_dir),
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),  # the driver decides on retries
        ),
    )


def _ray_folder(run_dir: str) -> str:
    """Where Ray Train keeps what nobody reads: in the run, or, if that is in an object store, on this machine."""
    if object_url(run_dir) is None:
        return str(Path(run_dir) / RAY_FOLDER)
    return str(Path(tempfile.gettempdir(), f"ebdiff-ray-{digest(run_dir)[:16]}"))


def _work(config: dict[str, str]) -> None:
    """Runs on the worker; the job itself knows nothing of ray."""
    from region_workers.failures import StopRequestedError
    from region_workers.run import run_job

    try:
        run_job(WorkerJob.model_validate_json(config["job"]), _Notice())
    except StopRequestedError:
        return


class _Notice:
    """Whether Ray says that a node of this region is about to be taken away; asked for every few seconds at most."""

    def __init__(self) -> None:
        from ray.train import get_context

        self._alone = get_context().get_world_size() == 1
        self._asked_at = -math.inf

    def __call__(self) -> bool:
        from ray.train import get_preemption_info

        # Several workers must ask equally often, which they do at the log interval; one asks when it likes.
        if self._alone and time.monotonic() - self._asked_at < _NOTICE_S:
            return False
        self._asked_at = time.monotonic()
        return get_preemption_info() is not None


def _quiet() -> None:
    for name in ("ray", "ray.train", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
