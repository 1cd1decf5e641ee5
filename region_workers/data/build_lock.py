"""One process builds a store of images or latents, while the others wait and see how far it is."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from region_workers.storage.lock import LockFile
from schemas.errors import RunFailed

Report = Callable[[int, int], None]

_POLL_S = 0.2
_NOTE_INTERVAL_S = 1.0
_log = logging.getLogger(__name__)


@contextmanager
def build_lock(path: Path, report: Report, stall_limit_s: float, what: str = "image") -> Iterator[Report]:
    """Hold the lock file at `path`, of a store of `what`; yields a report that the waiting processes can read.

    While another process holds it, its progress (done, total) goes to `report`. The kernel frees the lock of a killed
    holder. Raises RunFailed when the holder has shown no progress for `stall_limit_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with LockFile(path) as lock:
        _wait(lock, path, report, stall_limit_s, what)
        yield _noting(lock.descriptor, report)


def _wait(lock: LockFile, path: Path, report: Report, stall_limit_s: float, what: str) -> None:
    last_note, since = _read(lock.descriptor), time.monotonic()
    told = False
    while not lock.try_lock():
        note = _read(lock.descriptor)
        if note != last_note:
            last_note, since = note, time.monotonic()
            _pass_on(note, report)
        if not told:
            _log.info("waiting for the %s store that %s is building", what, _holder(note))
            told = True
        if time.monotonic() - since > stall_limit_s:
            raise RunFailed(
                f"waited {stall_limit_s:g} s for {_holder(note)} to build the {what} store, without any progress. "
                f"Look at that process; once it has ended, its lock {path} is free."
            )
        time.sleep(_POLL_S)


def _noting(descriptor: int, report: Report) -> Report:
    last_s = 0.0

    def note(done: int, total: int) -> None:
        nonlocal last_s
        report(done, total)
        if time.monotonic() - last_s > _NOTE_INTERVAL_S:
            last_s = time.monotonic()
            _write(descriptor, done, total)

    _write(descriptor, 0, 0)
    return note


def _write(descriptor: int, done: int, total: int) -> None:
    # Padded to one width, so that a newer note always covers the older one.
    note = f"{os.getpid()} {socket.gethostname()} {done} {total}".ljust(160)
    os.pwrite(descriptor, note.encode(), 0)


def _read(descriptor: int) -> list[str]:
    return os.pread(descriptor, 160, 0).decode(errors="replace").split()


def _pass_on(note: list[str], report: Report) -> None:
    if len(note) == 4 and note[2].isdigit() and note[3].isdigit() and int(note[2]):
        report(int(note[2]), int(note[3]))


def _holder(note: list[str]) -> str:
    return f"process {note[0]} on {note[1]}" if len(note) == 4 else "another process"
