"""Files that one process at a time holds: the kernel frees what a killed holder held."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.02


class LockFile:
    """An open file that can be held; a context that closes it, which frees it.

    `new`: it may have to be made; else OSError if there is none. A symbolic link is not followed.
    """

    def __init__(self, path: Path, new: bool = True) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if new else 0), 0o666)

    def __enter__(self) -> LockFile:
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
