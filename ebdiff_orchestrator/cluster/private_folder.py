"""The folder of an embedded Ray: its user's alone, gone with its driver; if that was killed, with the next."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "eb-"
_LOCK = "ebdiff.lock"  # held as long as the driver lives
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")  # as tempfile makes them


@contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """A new folder (mode 0700) until the block ends. Those of drivers that were killed are cleared first."""
    for folder in parent.glob(f"{_PREFIX}*"):
        if _NAME.fullmatch(folder.name):
            _clear_if_left(folder)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path) -> int:
    """Hold the folder. The lock has its name only once it is held, so that nobody takes it for free before."""
    new = folder / f"{_LOCK}.new"
    lock = os.open(new, os.O_CREAT | os.O_RDWR, 0o600)
    with suppress(OSError):  # a file system without locks: the folder is then never taken for left
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder / _LOCK)
    return lock


def _clear_if_left(folder: Path) -> None:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # not of ours, or of another user
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # its driver lives
        return
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
