"""Ray clusters that tests start as processes of their own, with a token, and of which nothing is left at the end."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from processes import processes_with

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


class ToldProcess:
    """A program of these tests in a cluster's environment that does as it is told on standard input.

    Its answers are the lines that begin with "> "; what else it prints is Ray's.
    """

    def __init__(self, setting: ClusterSetting, program: str, *arguments: str) -> None:
        self._log = setting.folder / f"{Path(program).stem}.log"
        self._process = subprocess.Popen(
            [sys.executable, program, *arguments],
            env=setting.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
        )

    def tell(self, text: str) -> str:
        """The answer to it."""
        assert self._process.stdin is not None
        print(text, file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> str:
        """The next one; AssertionError with all that it complained of if it ends without."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("> "):
                return line[2:].strip()
        raise AssertionError(self._log.read_text())


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


def run_in(environment: dict[str, str], *command: str | Path, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """A command in this environment, to its end."""
    words = [str(BIN / str(command[0])), *map(str, command[1:])]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
