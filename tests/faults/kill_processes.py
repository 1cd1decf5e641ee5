"""The processes of a command under attack: told apart by what they are, and never left behind."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from forked import ForkedProcess, fork_server
from processes import Process, descendants

DRIVER, WORKER, RAYLET, GCS, GROUP = "driver", "worker", "raylet", "gcs", "group"
VICTIMS = (DRIVER, WORKER, RAYLET, GCS, GROUP)

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# In a command line: it does a run's work.
_WORKER_MARKS = ("RegionWorker", "TrainWorker", "make_shards", "_share", "data.decode")


def adopt_orphans() -> None:
    """From now on an orphan among this process's descendants becomes its child, so that none can get away."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _begin_session() -> None:
    """In a new process: a session of its own, killed when the one that started it ends, however that comes about."""
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


class Command:
    """One call of `ebdiff` in a session of its own, with its output in a file."""

    def __init__(self, arguments: Sequence[str | Path], output: Path, environment: dict[str, str]) -> None:
        self.output = output
        self._process = ForkedProcess(
            *arguments, env={**os.environ, **environment}, output=output, begin=_begin_session
        )
        self.pid = self._process.pid
        self.began, self.began_at = time.monotonic(), time.time()

    @property
    def code(self) -> int | None:
        """The exit code; negative for a signal, None while it runs."""
        return self._process.poll()

    def wait(self, limit_s: float) -> int | None:
        """The exit code, None if it has not ended in time."""
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self, victim: str, number: signal.Signals, chosen: int) -> Process | None:
        """Send the signal to the victim, one of several by `chosen`; what it was, None if there is no such process."""
        family = [process for process in descendants(self.pid) if process.state != "Z"]
        if victim == GROUP:
            os.killpg(self.pid, number)
            return next((process for process in family if process.pid == self.pid), None)
        candidates = [process for process in family if _is(process, victim, self.pid)]
        if not candidates:
            return None
        process = sorted(candidates, key=lambda one: one.pid)[chosen % len(candidates)]
        os.kill(process.pid, number)
        return process


def _is(process: Process, victim: str, driver: int) -> bool:
    if victim == DRIVER:
        return process.pid == driver
    if victim == WORKER:
        return is_worker(process)
    return process.name == {RAYLET: "raylet", GCS: "gcs_server"}[victim]


def is_worker(process: Process) -> bool:
    """Whether it trains, samples, evaluates or decodes."""
    return any(mark in process.command for mark in _WORKER_MARKS)


def orphans() -> list[Process]:
    """What earlier commands left running."""
    own = fork_server() | {os.getpid()}
    rest = [process for process in descendants(os.getpid()) if process.pid not in own]
    for process in rest:
        if process.state == "Z" and process.parent == os.getpid():
            _reap(process.pid)
    return [process for process in rest if process.state != "Z"]


def end_orphans() -> None:
    """Kill what earlier commands left running."""
    while left := orphans():
        for process in left:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.05)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # a command that has been waited for
        return
