"""Joining a Ray cluster, or starting an embedded Ray."""

from __future__ import annotations

import atexit
import logging
import math
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from ebdiff_orchestrator.cluster.cluster import Cluster
from ebdiff_orchestrator.cluster.request import request_of
from ebdiff_orchestrator.cluster.surroundings import check_surroundings, cluster_address
from schemas.errors import RunFailed, UserError, plan_error
from schemas.plan import WorkersPlan

_STARTS = 3
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


@contextmanager
def connect(workers: WorkersPlan, jobs: int, address: str | None = None) -> Iterator[Cluster]:
    """Join the cluster at `address` or in RAY_ADDRESS (set under `ray job submit`), else start an embedded one.

    A program that is connected to Ray already stays so.

    The embedded Ray asks for a token made for this run, has no dashboard, and has room for all `jobs` at once.
    """
    check_surroundings(address)
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
    check_surroundings(address)
    if cluster_address(address) is None:
        _prepare_environment(None)
        _EarlyStart(workers, jobs).start()


class _EarlyStart(threading.Thread):
    """Starts the embedded Ray in the background; shut down when the program ends, if nobody has taken it over.

    The thread outlives its work: Ray's processes die with the thread that started them.
    """

    begun: ClassVar[_EarlyStart | None] = None

    def __init__(self, workers: WorkersPlan, jobs: int) -> None:
        super().__init__(name="start Ray", daemon=True)
        self._asked = (workers, jobs, None)
        self._error: Exception | None = None
        self._ready = threading.Event()
        type(self).begun = self
        atexit.register(self._end)

    def run(self) -> None:
        """Keep an error for whoever takes over."""
        try:
            _init(*self._asked)
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error
        self._ready.set()
        threading.Event().wait()

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
    if cluster.has_ended():
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


def _quiet() -> None:
    for name in ("ray", "ray.train", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
