"""The processes of a command under attack: found by descent, told apart by what they are, and never left behind."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forked import ForkedProcess, fork_server

DRIVER, WORKER, RAYLET, GCS, GROUP = "driver", "worker", "raylet", "gcs", "group"
VICTIMS = (DRIVER, WORKER, RAYLET, GCS, GROUP)

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# In a command line: it does a run's work.
_WORKER_MARKS = ("RegionWorker", "TrainWorker", "make_shards", "_share", "data.decode")


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it."""

    pid: int
    parent: int
    state: str
    name: str
    command: str
    cpu_s: float

    @property
    def is_worker(self) -> bool:
        """Whether it trains, samples, evaluates or decodes."""
        return any(mark in self.command for mark in _WORKER_MARKS)


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
        return process.is_worker
    return process.name == {RAYLET: "raylet", GCS: "gcs_server"}[victim]


def descendants(pid: int) -> list[Process]:
    """The process and all that came of it, zombies included."""
    everyone = {process.pid: process for process in _processes()}
    found = [everyone[pid]] if pid in everyone else []
    for one in found:
        found += [process for process in everyone.values() if process.parent == one.pid]
    return found


def orphans(besides: Command | None = None) -> list[Process]:
    """What earlier commands left running."""
    own = {process.pid for process in descendants(besides.pid)} if besides else set()
    own |= fork_server()
    rest = [process for process in descendants(os.getpid()) if process.pid != os.getpid() and process.pid not in own]
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


def _processes() -> Iterator[Process]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:  # it has just ended
                continue
            name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
            cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            yield Process(int(folder.name), int(fields[1]), fields[0], name, command, cpu_s)
