"""Programs in processes of their own, forked from one that has imported torch, diffusers and the project.

A new interpreter takes eight seconds of a core for these imports. A fork shares nothing else with anybody: arguments,
environment, folder, output, exit code and signals are a new process's. Ray is not imported before the fork.
"""

import atexit
import gc
import importlib
import multiprocessing
import multiprocessing.connection
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from processes import free_port

_FORKS = multiprocessing.get_context("forkserver")
_LATER = ("sklearn.datasets", "pyarrow.pandas_compat")  # what a launch imports when needed
_FORKS.set_forkserver_preload(
    ["region_workers.__main__", "ebdiff_orchestrator.run.launch", "ebdiff_orchestrator.cli.app", "diffusers", *_LATER]
)
_MAINS = {"ebdiff": "ebdiff_orchestrator.__main__", "region_workers": "region_workers.__main__"}


def sync_nothing() -> None:
    """In this process no file waits for the disk: nobody cuts the power here, and test_power_cut watches the calls."""
    os.fsync = lambda descriptor: None


class ForkedProcess:
    """`ebdiff ...`, `region_workers ...`, or what `python` takes, `-c CODE ...` or `FILE ...`; in the folder of now."""

    def __init__(
        self,
        *command: str | Path,
        env: Mapping[str, str] | None = None,
        output: Path | None = None,
        begin: Callable[[], None] | None = None,
    ) -> None:
        """`output`: where all that it prints goes, errors too. `begin`: what it does first; a function of a module."""
        self._folder = tempfile.TemporaryDirectory(prefix="forked-", ignore_cleanup_errors=True)
        self._output, self._errors = (Path(self._folder.name) / name for name in ("output", "errors"))
        if output is not None:
            self._output = self._errors = output
        words, place = list(map(str, command)), str(Path.cwd())
        environment = dict(os.environ if env is None else env)
        self._process = _FORKS.Process(
            target=_work, args=(words, environment, place, self._output, self._errors, begin)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self.sentinel = self._process.sentinel

    @property
    def returncode(self) -> int | None:
        """See RunningProcess."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """See RunningProcess."""
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        """See RunningProcess."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def wait(self, timeout: float | None = None) -> int:
        """The return code; `subprocess.TimeoutExpired` if it does not end in time."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """See RunningProcess; what it printed, and what it printed as errors."""
        self.wait(timeout)
        return self.said(), _read(self._errors)

    def said(self) -> str:
        """What it has printed so far, but for errors."""
        return _read(self._output)


class ForkedGroup:
    """Several workers of one job, each told its rank as torchrun does; if one fails, the others are killed."""

    def __init__(self, size: int, *command: str | Path) -> None:
        port = free_port()
        world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
        self.workers = [ForkedProcess(*command, env={**os.environ, **world, **rank}) for rank in ranks]
        self._failed: int | None = None

    @property
    def returncode(self) -> int | None:
        """See RunningProcess: of the first that failed."""
        return self.poll()

    def poll(self) -> int | None:
        """See RunningProcess."""
        codes = [worker.poll() for worker in self.workers]
        if any(codes):
            self._failed = self._failed or next(code for code in codes if code)
            self.send_signal(signal.SIGKILL)
        return None if None in codes else self._failed or 0

    def send_signal(self, sig: int) -> None:
        """See RunningProcess; to all."""
        for worker in self.workers:
            worker.send_signal(sig)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """See RunningProcess."""
        until = time.monotonic() + (timeout or 3600.0)
        while self.poll() is None:
            running = [worker.sentinel for worker in self.workers if worker.poll() is None]
            # All may have ended since the poll before: without any to wait for, a wait lasts as long as it may.
            if running and not multiprocessing.connection.wait(running, until - time.monotonic()):
                raise subprocess.TimeoutExpired("workers", timeout or 0.0)
        said = [worker.communicate() for worker in self.workers]
        return "".join(output for output, _ in said), "".join(errors for _, errors in said)


def run_forked(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
    begin: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with captured text, of a ForkedProcess."""
    process = ForkedProcess(*command, env=env, begin=begin)
    try:
        output, errors = process.communicate(timeout)
    finally:
        process.send_signal(signal.SIGKILL)
    return subprocess.CompletedProcess([], process.wait(), output, errors)


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def fork_server() -> set[int]:
    """The processes that every forked one comes from, started if they are not there: they outlive it."""
    from multiprocessing import forkserver, resource_tracker

    forkserver.ensure_running()
    return {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}


def _work(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: str,
    output: Path,
    errors: Path,
    begin: Callable[[], None] | None,
) -> None:
    """The life of a forked process."""
    gc.freeze()  # as in tests/conftest.py
    sync_nothing()
    if begin is not None:
        begin()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    try:
        _run(list(command))
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out, and Ray is shut down in


def _run(command: list[str]) -> None:
    program, *arguments = command
    if program in _MAINS:
        sys.argv = command
        sys.exit(importlib.import_module(_MAINS[program]).main())
    if program == "-c":
        sys.argv = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
