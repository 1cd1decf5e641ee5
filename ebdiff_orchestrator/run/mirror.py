"""A run directory in an object store, and the folder of this machine that stands for it.

The driver reads and writes the folder; what it needs is fetched, what it made is published: data first, then the files
that say that it is whole. A run in a folder needs none of this, and has a `NoMirror`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from region_workers.storage.integrity import is_whole
from schemas.job import Artifact

if TYPE_CHECKING:
    from region_workers.storage.object_store import ObjectStore

_SMALL_BYTES = 1 << 20


class Mirror(Protocol):
    """What a run directory does with the place that it stands for; keys are paths relative to the run."""

    def fetch(self, keys: Iterable[str]) -> None:
        """Have the folder hold these files as they are there, or not at all."""

    def fetch_artifacts(self, artifacts: Iterable[Artifact]) -> None:
        """Fetch the files that the folder does not hold as recorded."""

    def fetch_folder(self, folder: str) -> None:
        """Fetch every file of a folder."""

    def publish(self, path: str) -> None:
        """Put a file there, or every file of a folder."""

    def discard(self, path: str) -> None:
        """Delete there a file, or every file of a folder."""

    def be_patient(self, limit_s: float) -> None:
        """Wait so long for a store that does not answer: a run is going on."""


class NoMirror:
    """The folder is the run itself."""

    def fetch(self, keys: Iterable[str]) -> None:
        """See Mirror."""

    def fetch_artifacts(self, artifacts: Iterable[Artifact]) -> None:
        """See Mirror."""

    def fetch_folder(self, folder: str) -> None:
        """See Mirror."""

    def publish(self, path: str) -> None:
        """See Mirror."""

    def discard(self, path: str) -> None:
        """See Mirror."""

    def be_patient(self, limit_s: float) -> None:
        """See Mirror."""


class StoreMirror:
    """The folder stands for what is under the store's URL."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._seen: dict[str, tuple[int, int]] = {}

    def be_patient(self, limit_s: float) -> None:
        """See Mirror."""
        self._store.limit_s = limit_s

    def fetch(self, keys: Iterable[str]) -> None:
        """See Mirror. What has not changed since it was fetched last is not fetched again, unless it is small.

        The store's time of change counts whole seconds: a small file may have changed twice in one, to the same size.
        """
        wanted = [key for key in keys if ".." not in Path(key).parts]
        for key, stamp in zip(wanted, self._store.stamps(wanted), strict=True):
            path = self._folder / key
            if stamp is None:
                path.unlink(missing_ok=True)
                self._seen.pop(key, None)
            elif self._seen.get(key) != stamp or stamp[0] < _SMALL_BYTES or not path.is_file():
                self._store.download(key, path)
                self._seen[key] = stamp

    def fetch_artifacts(self, artifacts: Iterable[Artifact]) -> None:
        """See Mirror."""
        self.fetch([item.path for item in artifacts if not is_whole(self._folder, item)])

    def fetch_folder(self, folder: str) -> None:
        """See Mirror."""
        self.fetch(self._store.list_keys(folder))

    def publish(self, path: str) -> None:
        """See Mirror."""
        place = self._folder / path
        for file in [place] if place.is_file() else sorted(each for each in place.rglob("*") if each.is_file()):
            self._store.upload(file, file.relative_to(self._folder).as_posix())

    def discard(self, path: str) -> None:
        """See Mirror."""
        for key in [path, *self._store.list_keys(path)]:
            self._store.delete(key)
        self._seen = {key: stamp for key, stamp in self._seen.items() if not f"{key}/".startswith(f"{path}/")}
