"""A folder that is one process's own and goes with it; if that was killed, with the next of its kind."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from region_workers.storage.lock import LockFile

_LOCK = ".lock"
_ENDING = "[a-z0-9_]{8}"  # as tempfile makes it


class OwnFolder:
    """A context with a new folder (mode 0700) below `place`; the first thing it does is to clear what killed ones left.

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
