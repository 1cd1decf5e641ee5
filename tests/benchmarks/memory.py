"""The peak memory of a running process and of those it starts, as Linux keeps it in /proc."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.02


@dataclass
class Peak:
    """Resident bytes at most: of the process, of the largest process it started, and of the process without files.

    Pages of mapped files are the kernel's to take back; `own_anonymous` is what is not.
    """

    own: int = 0
    child: int = 0
    own_anonymous: int = 0


def watch(process: subprocess.Popen[str], until: Callable[[], bool] = lambda: False) -> Peak:
    """Look on until the process ends, or until `until` says so."""
    peak = Peak()
    while process.poll() is None and not until():
        peak.own = max(peak.own, _read(process.pid, "VmHWM"))
        peak.own_anonymous = max(peak.own_anonymous, _read(process.pid, "RssAnon"))
        for child in _children(process.pid):
            if _command(child) != _command(process.pid):  # else it is the process's own double, just forked
                peak.child = max(peak.child, _read(child, "VmHWM"))
        time.sleep(_POLL_S)
    return peak


def _read(pid: int, field: str) -> int:
    lines = _text(Path(f"/proc/{pid}/status")).splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def _command(pid: int) -> str:
    return _text(Path(f"/proc/{pid}/cmdline"))


def _children(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in _text(file).split()]


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):  # the process has just ended
        return ""
