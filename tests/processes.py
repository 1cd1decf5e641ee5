"""Processes as /proc shows them, and waiting for what they do."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it."""

    pid: int
    parent: int
    session: int
    state: str
    name: str
    command: str
    cpu_s: float


class RunningProcess(Protocol):
    """What tests do with a process; `subprocess.Popen` is one."""

    @property
    def returncode(self) -> int | None:
        """As `Popen` has it: minus the signal for a killed process."""

    def poll(self) -> int | None:
        """The return code, None while it runs."""

    def send_signal(self, sig: int) -> None:
        """Nothing happens if it has ended."""

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        """Wait for the end; what it printed."""


def processes() -> Iterator[Process]:
    """All of this machine, zombies included."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            yield process_of(int(folder.name))


def process_of(pid: int) -> Process:
    """Raises OSError if there is none."""
    folder = Path(f"/proc/{pid}")
    stat = (folder / "stat").read_text()
    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
    cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return Process(pid, int(fields[1]), int(fields[3]), fields[0], name, command, cpu_s)


def descendants(*pids: int) -> list[Process]:
    """The processes and all that came of them, zombies included."""
    everyone = {process.pid: process for process in processes()}
    found = {pid: everyone[pid] for pid in pids if pid in everyone}
    waiting = list(found)
    while waiting:
        parent = waiting.pop()
        children = {pid: each for pid, each in everyone.items() if each.parent == parent and pid not in found}
        found |= children
        waiting += children
    return list(found.values())


def processes_with(variable: str, value: str) -> dict[int, str]:
    """The command lines of processes with this in their environment, and of those that they started.

    A worker of Ray has a title where its environment was: only its parent tells whose it is.
    """
    marked = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{variable}={value}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                marked.append(int(folder.name))
    return {process.pid: process.command for process in descendants(*marked)}


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until(
    ready: Callable[[], _Found],
    what: str,
    while_runs: RunningProcess | None = None,
    look_s: float = 0.1,
    limit_s: float = 400,
) -> _Found:
    """What `ready()` gives once that is true; an AssertionError that says what was waited for, if time is up or the
    process has ended. Each look at a run or at Ray costs some milliseconds of a core: `look_s` only where it matters.
    """
    deadline = time.monotonic() + limit_s
    while not (found := ready()):
        assert time.monotonic() < deadline, f"waited {limit_s:.0f} s for {what}"
        if while_runs is not None and while_runs.poll() is not None:
            raise AssertionError(f"the process ended while {what} was waited for: {while_runs.communicate()}")
        time.sleep(look_s)
    return found
