"""A folder of this machine for one worker's life: nobody else's, and known to be alive as long as its worker is."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Self

_LOCK = ".lock"
_UNBORN = ".new-"


class Scratch:
    """A context in which `folder` is this worker's own, below `place`; it goes with it.

    A lock is held on a file in it. What workers of this machine left that no longer hold theirs is cleared at the
    start; what has no lock, or is another machine's, stays.
    """

    def __init__(self, place: Path) -> None:
        self._place, self._machine = place, socket.gethostname()
        self._home = place / f"{self._machine}-{uuid.uuid4().hex[:16]}"
        self.folder = self._home / "run"

    def __enter__(self) -> Self:
        self._place.mkdir(parents=True, exist_ok=True)
        self._clear_dead()
        unborn = self._place / f"{_UNBORN}{self._home.name}"
        (unborn / self.folder.name).mkdir(parents=True)
        self._lock = (unborn / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unborn.rename(self._home)  # only now can others see it: with its lock held
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._home, ignore_errors=True)
        self._lock.close()

    def is_lost(self) -> bool:
        """Whether somebody has deleted the folder, even if it was made again."""
        try:
            there = os.path.samestat((self._home / _LOCK).stat(), os.fstat(self._lock.fileno()))
        except OSError:
            return True
        return not (there and self.folder.is_dir())

    def _clear_dead(self) -> None:
        for lock in self._place.glob(f"{self._machine}-*/{_LOCK}"):
            with suppress(OSError), lock.open() as file:  # BlockingIOError: its worker lives
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent)
