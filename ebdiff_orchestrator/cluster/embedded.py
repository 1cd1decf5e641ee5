"""The Ray that a run starts for itself: on loopback, in a private folder, without what the run does not use."""

from __future__ import annotations

import atexit
import logging
import math
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, ClassVar

from ebdiff_orchestrator.cluster.executor import request_of
from region_workers.storage.locks import OwnFolder
from schemas.errors import RunFailed
from schemas.plan import WorkersPlan
from schemas.process import PASSIVE_WAIT

FOLDER_PREFIX = "eb-"
_STARTS = 3
_START_LIMIT_S = 600.0
_END_LIMIT_S = 10.0  # for one that is still starting as the program ends
_LOOK_S = 1.0
_QUIET_S = 3.0
_UNUSED = ("start_api_server", "start_monitor", "start_log_monitor")  # dashboard, autoscaler, printing workers' logs
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine
    "RAY_worker_niceness": "0",  # a busy desktop would starve workers at Ray's default of 15
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # no cluster: on every system, all of Ray listens on loopback alone
    "RAY_enable_metrics_collection": "0",  # and nothing listens for who would collect them
}
WORKER_ENVIRONMENT = PASSIVE_WAIT | {"TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

Say = Callable[[str], None]
_ray_log = MemoryHandler(1000, logging.NOTSET, flushOnClose=False)  # until it has a target


class EmbeddedRay(threading.Thread):
    """Starts in the background; shut down when the program ends, if nobody has taken it over.

    The thread lives until `stop`: Ray's processes die with the thread that started them.
    """

    begun: ClassVar[EmbeddedRay | None] = None

    def __init__(self, workers: WorkersPlan, jobs: int) -> None:
        super().__init__(name="start Ray", daemon=True)
        self._workers, self._jobs = workers, jobs
        self._error: Exception | None = None
        self._ready, self._over = threading.Event(), threading.Event()
        for name, value in (_ENVIRONMENT | WORKER_ENVIRONMENT).items():  # workers inherit it
            os.environ.setdefault(name, value)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

    @classmethod
    def begin(cls, workers: WorkersPlan, jobs: int) -> EmbeddedRay:
        """Start one in the background; `taken_over` waits for it."""
        cls.begun = cls(workers, jobs)
        atexit.register(cls.begun._end)
        cls.begun.start()
        return cls.begun

    @classmethod
    def taken_over(cls, workers: WorkersPlan, jobs: int, say: Say) -> EmbeddedRay:
        """The one begun for just this, else a new one, once it is up; RunFailed if it is not in `_START_LIMIT_S`."""
        early = cls.begun
        if early is not None and (early._workers, early._jobs) != (workers, jobs):
            early._wait(say)
            early.stop()
            early = None
        ray = early or cls.begin(workers, jobs)
        ray._wait(say)
        cls.begun = None
        if ray._error is not None:
            raise ray._error
        return ray

    def run(self) -> None:
        """Keep an error for whoever takes over."""
        try:
            with OwnFolder(_temp_dir(), FOLDER_PREFIX) as folder:  # what Ray makes in it is open to all
                _start(self._workers, self._jobs, str(folder.path / "r"))
                self._ready.set()
                self._over.wait()
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error
            self._ready.set()

    def stop(self) -> None:
        """Shut Ray down, and remove its folder."""
        import ray

        ray.shutdown()
        self._over.set()
        self.join()

    def _wait(self, say: Say) -> None:
        began = time.monotonic()
        while not self._ready.wait(_LOOK_S):
            waited = time.monotonic() - began
            if waited > _START_LIMIT_S:
                raise _not_started(f"within {_START_LIMIT_S:.0f} s")
            if waited > _QUIET_S:
                say(f"waiting for Ray to start on this machine ({waited:.0f} s so far, at most {_START_LIMIT_S:.0f} s)")

    def _end(self) -> None:
        if type(self).begun is self and self._ready.wait(_END_LIMIT_S) and self._error is None:
            self.stop()


def end_if_starting(code: int) -> None:
    """End the program at once, with this exit code, if its Ray is still starting: that one's processes end with it.

    A Ray that is up, or none, is left to the program's ordinary end.
    """
    if EmbeddedRay.begun is not None and not EmbeddedRay.begun._ready.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def silence_ray() -> None:
    """From now on nothing of Ray's loggers is printed; errors alone are kept. To be called again after its import."""
    ray = logging.getLogger("ray")
    ray.propagate = False
    ray.handlers = [_ray_log]
    for name in ("ray", "ray.train", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def keep_what_ray_says() -> None:
    """As `silence_ray`; errors are kept until `log_ray_to` names their place, not sent where an earlier run's went."""
    silence_ray()
    _ray_log.setTarget(None)


def log_ray_to(file: Path | None) -> None:
    """Have what was kept, and what is still to come, in `file`; without one, on standard error as it comes."""
    silence_ray()
    _ray_log.setTarget(logging.FileHandler(file, delay=True) if file else logging.StreamHandler())
    _ray_log.flush()


def _temp_dir() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def _start(workers: WorkersPlan, jobs: int, folder: str) -> None:
    import ray

    silence_ray()
    processes = request_of(workers, 0.0).processes
    cpus = max(os.cpu_count() or 1, math.ceil(jobs * processes * workers.cpus))
    # Several workers of a job come with helpers: on few cores Ray would warn that so many processes start at once.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(16, 8 * jobs * processes)))
    # Ray starts a worker for each CPU before anything asks for one. With fewer jobs than that, some would be idle.
    os.environ.setdefault("RAY_prestart_worker_first_driver", str(int(jobs * processes >= cpus)))
    # Ray gives a worker 60 s to start, five times: on a machine that others keep busy, importing torch takes longer.
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "180")
    for attempt in range(_STARTS):
        try:
            with _started_our_way():
                ray.init(
                    "local",  # not one that happens to run here
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,  # workers report through their run's files
                    configure_logging=False,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                )
            return
        except Exception as error:
            if "timed out" not in str(error):
                raise
            if attempt + 1 == _STARTS:
                raise _not_started(f"in {_STARTS} attempts, as Ray says ({error})") from error
            ray.shutdown()  # a busy machine: Ray's own limit for its processes has no setting that suits all


def _not_started(how: str) -> RunFailed:
    return RunFailed(
        f"Ray did not start on this machine {how}: other programs may keep it busy. The same command goes on."
    )


@contextmanager
def _started_our_way() -> Iterator[None]:
    """Ray has no settings for this. Each process that is left out costs about 100 MB and seconds of the start."""
    changes = _changes()
    before = [(place, name, getattr(place, name)) for place, name, _ in changes]
    for place, name, value in changes:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def _changes() -> list[tuple[Any, str, Any]]:
    """What to replace, as seen in Ray 2.60.0. Another Ray, in which some of it is missing, keeps that part."""
    try:
        from ray._private import ray_constants, services
        from ray._private.node import Node
    except ImportError:
        return []
    changes: list[tuple[Any, str, Any]] = [(Node, name, _do_nothing) for name in _UNUSED]
    changes.append((ray_constants, "ENABLE_RAY_CLUSTER", False))
    if sys.platform == "linux":  # elsewhere Ray ends its processes by their group
        changes.append((services, "ConsolePopen", _popen_in_own_session))
    return [(place, name, value) for place, name, value in changes if hasattr(place, name)]


def _popen_in_own_session(*arguments: Any, **options: Any) -> subprocess.Popen[Any]:
    """A signal to the driver's group (`timeout`, a scheduler) is the driver's: workers save, and need Ray for it.

    Ray itself keeps only SIGINT from its processes. They still die with the driver, who is their parent.
    """
    return subprocess.Popen(*arguments, **options, start_new_session=True)


def _do_nothing(*_: object, **__: object) -> None:
    """In the place of what starts a process."""
