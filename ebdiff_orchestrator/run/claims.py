"""Where the claims of a run lie, and the lock under which it is claimed and changed: in a folder, or in a store."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from region_workers.storage.durable import remove_leftovers, write_bytes
from schemas.errors import UserError
from schemas.owner import OWNERS_FOLDER, Claim, is_claim

if TYPE_CHECKING:
    from region_workers.storage.object_store import ObjectStore

_LOCK_FILE = ".lock"
_LOCK_WAIT_S = 30.0
_LOCK_LOOK_S = 0.02


class Claims(Protocol):
    """Where the claims of a run lie."""

    def names(self) -> list[str]:
        """Of all claims, in order."""

    def read(self, name: str) -> Claim | None:
        """A claim; None if it is gone or being written."""

    def write(self, claim: Claim) -> None:
        """Put a claim in one move."""

    def delete(self, name: str) -> None:
        """Delete a claim, if it is there."""

    def forget(self) -> None:
        """Delete all claims, and the folder that they are in."""

    def locked(self) -> AbstractContextManager[None]:
        """Within it nobody else claims the run or changes it, as far as the place can promise that."""

    def claiming(self) -> AbstractContextManager[None]:
        """`locked`, with the place made for a claim and cleared of what a killed writer left there."""


class FolderClaims:
    """The claims of a run in a folder."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / OWNERS_FOLDER

    def names(self) -> list[str]:
        """See Claims."""
        return sorted(path.name for path in self._folder.glob("*.json") if is_claim(path.name))

    def read(self, name: str) -> Claim | None:
        """See Claims."""
        try:
            return Claim.model_validate_json((self._folder / name).read_text())
        except (OSError, ValueError):
            return None

    def write(self, claim: Claim) -> None:
        """See Claims."""
        write_bytes(self._folder / claim.name, claim.model_dump_json().encode())

    def delete(self, name: str) -> None:
        """See Claims."""
        (self._folder / name).unlink(missing_ok=True)

    def forget(self) -> None:
        """See Claims."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """See Claims."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.locked():
            remove_leftovers(self._folder)
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """See Claims. UserError if somebody holds the lock too long."""
        deadline = time.monotonic() + _LOCK_WAIT_S
        while self._folder.is_dir():  # without it there is no claim left to look for
            descriptor = os.open(self._folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if _try_lock(descriptor) and _is_at(descriptor, self._folder / _LOCK_FILE):
                    yield
                    return
            finally:
                os.close(descriptor)  # frees the lock
            if time.monotonic() > deadline:
                raise UserError(_stuck(self._folder / _LOCK_FILE))
            time.sleep(_LOCK_LOOK_S)
        yield


class StoredClaims:
    """The claims of a run in an object store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def names(self) -> list[str]:
        """See Claims."""
        return [name for name in self._store.names(OWNERS_FOLDER) if is_claim(name)]

    def read(self, name: str) -> Claim | None:
        """See Claims."""
        try:
            return Claim.model_validate_json(self._store.read(f"{OWNERS_FOLDER}/{name}"))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, claim: Claim) -> None:
        """See Claims."""
        self._store.write(f"{OWNERS_FOLDER}/{claim.name}", claim.model_dump_json().encode())

    def delete(self, name: str) -> None:
        """See Claims."""
        self._store.delete(f"{OWNERS_FOLDER}/{name}")

    def forget(self) -> None:
        """See Claims."""
        for name in self.names():
            self.delete(name)

    def locked(self) -> AbstractContextManager[None]:
        """See Claims. A store has no locks: who is the newest is looked at right before each change."""
        return nullcontext()

    def claiming(self) -> AbstractContextManager[None]:
        """See Claims."""
        return nullcontext()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _stuck(lock: Path) -> str:
    return (
        f"DIR = {lock.parents[1]}: expected that no other launch or resume is in the midst of changing this run, but "
        f"one has held the lock {lock} for {_LOCK_WAIT_S:.0f} s. Make sure that it has ended (it may be halted), and "
        "start this one again."
    )
