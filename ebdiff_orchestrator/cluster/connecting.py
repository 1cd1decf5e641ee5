"""Joining a Ray cluster, or starting an embedded Ray; what a user tells Ray outside the plan is looked at first."""

import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ebdiff_orchestrator.cluster.embedded import (
    WORKER_ENVIRONMENT,
    EmbeddedRay,
    Say,
    keep_what_ray_says,
    log_ray_to,
    silence_ray,
)
from ebdiff_orchestrator.cluster.executor import Executor, request_of
from region_workers.storage.places import check_writable_folder
from schemas.errors import RunFailed, UserError, plan_error, user_error
from schemas.plan import WorkersPlan
from schemas.section import check_place

_ADDRESS = re.compile(r"auto|local|(ray://)?([^\s:/@]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}")
_FOLDERS = ("RAY_TMPDIR", "TMPDIR")  # Ray takes the first that is set
_SOCKET = "/eb-00000000/r/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"  # what stands below it
_LONGEST_SOCKET = 107  # bytes; Linux' limit
_LISTENS_WITHIN_S = 30.0


def say_nothing(text: str) -> None:
    """Nobody is told."""


@contextmanager
def connect(
    workers: WorkersPlan,
    jobs: int,
    address: str | None = None,
    log: Path | None = None,
    say: Say = say_nothing,
    executor: Executor | None = None,
) -> Iterator[Executor]:
    """Join the cluster at `address` or in RAY_ADDRESS (set under `ray job submit`), else start an embedded one.

    A program that is connected to Ray already stays so. A caller's own `executor` is handed back; no Ray is used then.

    The embedded Ray listens on loopback alone, asks for a token made for this run, keeps its files in a folder that
    others cannot enter, has no dashboard, and has room for all `jobs` at once. `say` is told what is waited for; what
    Ray itself has to say goes to `log`, or standard error.
    """
    if executor is not None:
        yield executor
        return
    check_surroundings(address)
    address = cluster_address(address)
    if EmbeddedRay.begun is None and _is_connected():
        yield _cluster(workers, embedded=False)
        return
    keep_what_ray_says()
    try:
        stop = _join(address) if address else EmbeddedRay.taken_over(workers, jobs, say).stop
    finally:
        log_ray_to(log)
    _take_back_sigterm()
    try:
        yield _cluster(workers, embedded=not address)
    finally:
        stop()


def start_early(workers: WorkersPlan, jobs: int, address: str | None = None) -> None:
    """Start the embedded Ray, if one will be needed, while the program goes on; `connect` with the same finds it."""
    check_surroundings(address)
    if cluster_address(address) is None:
        EmbeddedRay.begin(workers, jobs)


def cluster_address(address: str | None) -> str | None:
    """The cluster to join: the one named, else RAY_ADDRESS; None for an embedded Ray. UserError if it is no address."""
    name, found = ("--address", address) if address else ("RAY_ADDRESS", os.environ.get("RAY_ADDRESS"))
    if found and not _ADDRESS.fullmatch(found):
        raise user_error(name, found, "HOST:PORT, ray://HOST:PORT or auto", "Correct it, or leave it out.")
    return found or None


def check_surroundings(address: str | None) -> None:
    """Raise UserError for an address that is none, and for folders in which no embedded Ray can work."""
    if cluster_address(address) is not None:
        return
    given = [name for name in _FOLDERS if os.environ.get(name)]
    for name in given:
        check_place(name, os.environ[name])
        check_writable_folder(Path(os.environ[name]), name)
    if given and len(os.fsencode(os.environ[given[0]] + _SOCKET)) > _LONGEST_SOCKET:
        expected = f"a path of at most {_LONGEST_SOCKET - len(_SOCKET)} bytes, since Ray puts sockets below it"
        raise user_error(given[0], os.environ[given[0]], expected, "Set it to a shorter one, as /tmp.")


def _is_connected() -> bool:
    ray = sys.modules.get("ray")  # its import reads the environment, which is not prepared yet
    return ray is not None and bool(ray.is_initialized())


def _join(address: str) -> Callable[[], None]:
    """Connect to the cluster; returns the function that disconnects."""
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    try:
        _check_somebody_listens(address)
        import ray

        silence_ray()
        ray.init(
            address=address,
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
            log_to_driver=False,  # workers report through their run's files
            configure_logging=False,
        )
    except ConnectionError as error:
        check = "Check the address, that it is up, and that RAY_AUTH_MODE and the token here are as there."
        raise UserError(f"Ray at {address}: cannot connect ({error}). {check}") from None
    return ray.shutdown  # type: ignore[no-any-return]


def _check_somebody_listens(address: str) -> None:
    """Raise ConnectionError where nobody can be reached: Ray would try for many minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or address.startswith("ray://"):  # whose client has a limit of its own
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _LISTENS_WITHIN_S).close()
    except (OSError, OverflowError) as error:  # there is no such host, port or way, or no answer
        raise ConnectionError(error) from None


def _take_back_sigterm() -> None:
    """Ray's core puts a handler before the program's own, which prints a stack and aborts the process after 3 s."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _cluster(workers: WorkersPlan, embedded: bool) -> Executor:
    import ray

    from ebdiff_orchestrator.cluster.ray_executor import RayExecutor

    request = request_of(workers, ray.cluster_resources().get("GPU", 0.0))
    cluster = RayExecutor(embedded, request, workers.retries, workers.wait_limit_s)
    if cluster.has_ended():
        raise RunFailed("The Ray of this run ended before anything could start. The same command goes on.")
    if embedded and cluster.workers_at_once() < request.processes:
        free = cluster.describe_free()
        raise plan_error("workers.gpus", workers.gpus, f"what this machine has ({free})", "Lower it, or use auto.")
    return cluster
