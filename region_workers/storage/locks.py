"""Files and folders that one process at a time holds: the kernel frees what a killed holder held."""

import fcntl
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

from schemas.errors import RunFailed

Report = Callable[[int, int], None]  # of what is done, of how much in all

_POLL_S = 0.02
_BUILD_POLL_S, _NOTE_INTERVAL_S = 0.2, 1.0
_NOTE_BYTES = 512  # all of one width, so that a newer note always covers the older one
_LOCK = ".lock"  # in a folder of one process's own
_ENDING = "[a-z0-9_]{8}"  # of its name, as tempfile makes it
_log = logging.getLogger(__name__)


class LockFile:
    """An open file that can be held; a context that closes it, which frees it.

    `new`: it may have to be made; else OSError if there is none. A symbolic link is not followed.
    """

    def __init__(self, path: Path, new: bool = True) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if new else 0), 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def try_lock(self) -> bool:
        """Hold it, unless another holds it. OSError where the file system has no locks."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def is_at(self, path: Path) -> bool:
        """Whether this very file, and no newer one, is at `path`."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), path.stat())
        except (FileNotFoundError, NotADirectoryError):
            return False


@contextmanager
def locked(path: Path, limit_s: float, stuck: Callable[[], Exception]) -> Iterator[None]:
    """Hold the file at `path`; raises what `stuck` returns if another holds it longer than `limit_s`.

    The file may be deleted with its folder by whoever holds it. Without the folder there is nothing left to guard, and
    nothing is held.
    """
    deadline = time.monotonic() + limit_s
    while path.parent.is_dir():
        with LockFile(path) as file:
            if file.try_lock() and file.is_at(path):
                yield
                return
        if time.monotonic() > deadline:
            raise stuck()
        time.sleep(_POLL_S)
    yield


@contextmanager
def build_lock(path: Path, report: Report, stall_limit_s: float, what: str) -> Iterator[Report]:
    """Hold the lock file at `path` to build a store of `what`; yields a report that the waiting processes can read.

    While another process holds it, its progress goes to `report`. Raises RunFailed when that process has shown none
    for `stall_limit_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with LockFile(path) as lock:
        _wait_for_builder(lock, path, report, stall_limit_s, what)
        noted_s = 0.0

        def note(done: int, total: int) -> None:
            nonlocal noted_s
            report(done, total)
            if time.monotonic() - noted_s > _NOTE_INTERVAL_S:
                noted_s = time.monotonic()
                _write_note(lock, done, total)

        _write_note(lock, 0, 0)
        yield note


class _Note(NamedTuple):
    """What the holder of a build lock says in the file."""

    holder: str = "another process"
    done: int = 0
    total: int = 0


def _wait_for_builder(lock: LockFile, path: Path, report: Report, stall_limit_s: float, what: str) -> None:
    last, since, told = _read_note(lock), time.monotonic(), False
    while not lock.try_lock():
        note = _read_note(lock)
        if note != last:
            last, since = note, time.monotonic()
            if note.done:
                report(note.done, note.total)
        if not told:
            _log.info("waiting for the %s store that %s is building", what, note.holder)
            told = True
        if time.monotonic() - since > stall_limit_s:
            raise RunFailed(
                f"waited {stall_limit_s:g} s for {note.holder} to build the {what} store, without any progress. "
                f"Look at that process; once it has ended, its lock {path} is free."
            )
        time.sleep(_BUILD_POLL_S)


def _write_note(lock: LockFile, done: int, total: int) -> None:
    note = _Note(f"process {os.getpid()} on {socket.gethostname()}", done, total)
    os.pwrite(lock.descriptor, json.dumps(note).encode().ljust(_NOTE_BYTES), 0)


def _read_note(lock: LockFile) -> _Note:
    try:
        return _Note(*json.loads(os.pread(lock.descriptor, _NOTE_BYTES, 0)))
    except (ValueError, TypeError):  # none yet, or somebody else's
        return _Note()


class OwnFolder:
    """A context with a new folder (mode 0700) below `place`; what killed ones left there is cleared first.

    A folder lives as long as the lock in it is held. One without a lock, or of another `prefix`, is left alone.
    """

    def __init__(self, place: Path, prefix: str) -> None:
        self._place, self._prefix = place, prefix

    def __enter__(self) -> Self:
        self._place.mkdir(parents=True, exist_ok=True)
        for folder in self._place.glob(f"{self._prefix}*"):
            if re.fullmatch(re.escape(self._prefix) + _ENDING, folder.name):
                _clear_if_left(folder)
        self.path = Path(tempfile.mkdtemp(prefix=self._prefix, dir=self._place))
        self._name = self.path / f"{_LOCK}.new"
        self._lock = LockFile(self._name)
        with suppress(OSError):  # a file system without locks: the folder is then never taken for left
            self._lock.try_lock()
            self._name = self._name.rename(self.path / _LOCK)  # only now: nobody may take it for free before
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.__exit__()

    def is_lost(self) -> bool:
        """Whether somebody has deleted the folder, even if it was made again."""
        return not self._lock.is_at(self._name)


def _clear_if_left(folder: Path) -> None:
    with suppress(OSError), LockFile(folder / _LOCK, new=False) as lock:  # OSError: not of ours, or another user's
        if lock.try_lock():
            shutil.rmtree(folder, ignore_errors=True)
