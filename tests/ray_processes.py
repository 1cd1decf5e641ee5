"""Ray clusters that tests start as processes of their own, with a token, and of which nothing is left at the end."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "EBDIFF_TEST_CLUSTER"  # in the environment of every process of one cluster
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class ClusterSetting:
    """Where a cluster lives and the environment in which it, its jobs and its clients run."""

    folder: Path
    environment: dict[str, str]
    mark: str

    @property
    def token_file(self) -> Path:
        """Ray's token, readable by its user alone."""
        return self.folder / "token"

    @property
    def stranger(self) -> dict[str, str]:
        """The environment of somebody who has no token."""
        return {name: v for name, v in self.environment.items() if not name.startswith("RAY_AUTH") and name != MARK}

    def processes(self) -> dict[int, str]:
        """The command lines of the cluster's processes, by process id."""
        return processes_with(MARK, self.mark)

    def kill_all(self) -> None:
        """Kill them, and what comes after them."""
        for _ in range(50):
            left = self.processes()
            if not left:
                return
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        raise AssertionError(f"still alive: {self.processes()}")


@contextmanager
def cluster_setting(cache_dir: Path) -> Iterator[ClusterSetting]:
    """A setting for one cluster; whatever was started in its environment is killed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: the names of sockets below it are limited
    mark = secrets.token_hex(8)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "OMP_"))}
    environment = kept | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(folder),  # where Ray would find another token
        "EBDIFF_CACHE": str(cache_dir),
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
        "RAY_worker_niceness": "0",
        "RAY_prestart_worker_first_driver": "0",  # no workers that nobody asks for
        MARK: mark,
    }
    setting = ClusterSetting(folder, environment, mark)
    setting.token_file.touch(mode=0o600)
    setting.token_file.write_text(secrets.token_hex(32))
    try:
        yield setting
    finally:
        setting.kill_all()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def run_in(environment: dict[str, str], *command: str | Path, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """A command in this environment, to its end."""
    words = [str(BIN / str(command[0])), *map(str, command[1:])]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def wait_until(ready: Callable[[], bool], what: str, limit_s: float = 400) -> None:
    """Until `ready()`; an AssertionError that says what was waited for otherwise."""
    deadline = time.monotonic() + limit_s
    while not ready():
        assert time.monotonic() < deadline, f"waited {limit_s:.0f} s for {what}"
        time.sleep(0.2)  # each look costs Ray or a run's readers some milliseconds of a core


def processes_with(variable: str, value: str) -> dict[int, str]:
    """The command lines of processes with this in their environment, and of those that they started.

    A worker of Ray has a title where its environment was: only its parent tells whose it is.
    """
    marked, children, commands = set(), defaultdict(list), {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid, parent = int(process.name), int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
            commands[pid] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            children[parent].append(pid)
            if f"{variable}={value}".encode() in (process / "environ").read_bytes().split(b"\0"):
                marked.add(pid)
    found: dict[int, str] = {}
    waiting = list(marked)
    while waiting:
        pid = waiting.pop()
        found[pid] = commands[pid]
        waiting += [child for child in children[pid] if child not in found]
    return found
