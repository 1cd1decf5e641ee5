"""Workers as processes: `python -m region_workers`, without a new interpreter that takes seconds to import torch."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["region_workers.__main__"])


class WorkerProcess(Protocol):
    """What tests do with a worker; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int:
        """The process's number."""

    @property
    def returncode(self) -> int | None:
        """As `Popen` has it: minus the signal for a killed process."""

    def poll(self) -> int | None:
        """The return code, None while it runs."""

    def send_signal(self, sig: int) -> None:
        """Nothing happens if it has ended."""

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        """Wait for the end; what it printed."""


class ForkedWorker:
    """`python -m region_workers JOB.json` in a fork of a process that has imported it; it shares nothing else."""

    def __init__(self, job_file: Path) -> None:
        descriptor, name = tempfile.mkstemp(prefix="worker-output-")
        os.close(descriptor)
        self._output = Path(name)
        self._process = _FORKS.Process(target=_work, args=(job_file, self._output, dict(os.environ), str(Path.cwd())))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """See WorkerProcess."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """See WorkerProcess."""
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        """See WorkerProcess."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        """See WorkerProcess."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("region_workers", timeout or 0.0)
        output = self._output.read_text() if self._output.exists() else ""
        self._output.unlink(missing_ok=True)
        return output, None


def _work(job_file: Path, output: Path, environment: Mapping[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    said = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(said, stream)
    sys.argv = ["region_workers", str(job_file)]
    from region_workers.__main__ import main

    sys.exit(main())
