"""The claims of a run, and the lock under which it is claimed and changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from region_workers.storage.durable import remove_leftovers
from region_workers.storage.run_files import RunFiles
from schemas.owner import OWNERS_FOLDER, Claim

_LOCK = f"{OWNERS_FOLDER}/.lock"


class Claims:
    """The claims that lie among a run's files, one a file."""

    def __init__(self, files: RunFiles) -> None:
        self._files, self.where = files, files.location

    def names(self) -> list[str]:
        """Of all claims, in order."""
        return self._files.claims()

    def newest(self) -> str | None:
        """The owner's; None without any."""
        return max(self.names(), default=None)

    def read(self, name: str) -> Claim | None:
        """A claim; None if it is gone or being written."""
        try:
            return Claim.model_validate_json(self._files.read(f"{OWNERS_FOLDER}/{name}"))
        except (FileNotFoundError, PermissionError, ValueError):
            return None

    def write(self, claim: Claim) -> None:
        """Put a claim in one move."""
        self._files.write(f"{OWNERS_FOLDER}/{claim.name}", claim.model_dump_json().encode())

    def delete(self, name: str) -> None:
        """Delete a claim, if it is there."""
        self._files.delete(f"{OWNERS_FOLDER}/{name}")

    def forget(self) -> None:
        """Delete all claims, and the folder that they are in."""
        with suppress(FileNotFoundError):
            self._files.discard(OWNERS_FOLDER)

    def locked(self) -> AbstractContextManager[None]:
        """Within it nobody else claims the run or changes it, as far as its place can promise that."""
        return self._files.locked(_LOCK)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """`locked`, with the place made for a claim and cleared of what a killed writer left there."""
        with self._files.locked(_LOCK, make=True):
            remove_leftovers(self._files.folder / OWNERS_FOLDER)
            yield
