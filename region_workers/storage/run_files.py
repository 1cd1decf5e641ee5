"""The files of a run, in a folder or under a URL of an object store: nobody who uses them can tell which.

They are read and written in `folder`: the run's own, or one of this machine that stands for the URL. What is needed
there is fetched and what was made there is published; in the run's own folder both are done already.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from region_workers.storage.durable import write_bytes
from region_workers.storage.integrity import files_in, is_whole
from region_workers.storage.locks import locked
from region_workers.storage.places import cache_dir_of, is_url
from schemas.digest import digest
from schemas.errors import NO_SPACE, UserError, user_error
from schemas.job import OWNERS_FOLDER, Artifact, is_claim
from schemas.section import check_place

if TYPE_CHECKING:
    from region_workers.storage.object_store import ObjectStore

_URL = re.compile(r"(s3|gs|gcs):/+(.+)", re.DOTALL)
_COPIES_FOLDER = "runs"  # in the cache
_SMALL_BYTES = 1 << 20
_LOCK_WAIT_S = 30.0

Stamp = tuple[int, int]


def local_folder(location: str | Path) -> Path | None:
    """The folder that a path or a `file://` URL names, absolute; None for a URL of an object store.

    Raises UserError for a location that cannot be, or that holds a secret.
    """
    return _folder_of(location) if _object_url(location) is None else None


class RunFiles:
    """Files by their keys, the paths relative to the run.

    `folder`: what is to stand for a URL here; default: one in the cache, the same whenever the URL is opened.
    `silence_limit_s`: how long a store may not answer. Raises UserError for a URL that cannot be opened, OSError for
    what the place refuses.
    """

    def __init__(self, location: str | Path, folder: Path | None = None, silence_limit_s: float | None = None) -> None:
        url = _object_url(location)
        self._store: ObjectStore | None = None
        self._seen: dict[str, Stamp] = {}
        if url is None:
            self.folder = _folder_of(location)
            self.location = str(self.folder)
            return
        from region_workers.storage.object_store import ObjectStore  # pyarrow, for which a folder has no use

        self.location = url
        self.folder = folder or cache_dir_of() / _COPIES_FOLDER / digest(url)[:16]
        self._store = ObjectStore(url) if silence_limit_s is None else ObjectStore(url, silence_limit_s)

    @property
    def is_copy(self) -> bool:
        """Whether `folder` only stands for the run."""
        return self._store is not None

    def wait_for_store(self, limit_s: float) -> None:
        """Set for how long the store may fail to answer."""
        if self._store is not None:
            self._store.limit_s = limit_s

    def forgive_silence(self) -> None:
        """Give the next operation the whole limit, however long the store has been silent."""
        if self._store is not None:
            self._store.silent_since = None

    def list_keys(self, folder: str = "") -> list[str]:
        """The keys of all files in a folder of the run, at any depth, as they are now."""
        if self._store is not None:
            return self._store.list_keys(folder)
        return sorted(path.relative_to(self.folder).as_posix() for path in files_in(self.folder / folder))

    def claims(self) -> list[str]:
        """The names of the run's claims, in order; the last is its owner's."""
        return [name for name in (Path(key).name for key in self.list_keys(OWNERS_FOLDER)) if is_claim(name)]

    def has_newer_owner(self, claim: str) -> bool:
        """Whether the run has a newer owner than that of the claim so named; never without a name."""
        return bool(claim) and max(self.claims(), default="") > claim

    def outline(self) -> list[str]:
        """The keys of files and folders down to the second level."""
        if self._store is not None:
            return sorted({"/".join(key.split("/")[:2]) for key in self._store.list_keys()})
        paths = [*self.folder.glob("*"), *self.folder.glob("*/*")]
        return sorted(path.relative_to(self.folder).as_posix() for path in paths)

    def read(self, key: str) -> bytes:
        """A file as it is now. FileNotFoundError if there is none."""
        return self._store.read(key) if self._store is not None else (self.folder / key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        """Put a file in one move."""
        if self._store is not None:
            self._store.write(key, data)
        else:
            write_bytes(self.folder / key, data)

    def delete(self, key: str) -> None:
        """Delete a file, if it is there; what stands for it in another folder stays."""
        if self._store is not None:
            self._store.delete(key)
        else:
            (self.folder / key).unlink(missing_ok=True)

    def fetch(self, keys: Iterable[str]) -> None:
        """Have `folder` hold these files as they are, or not at all.

        What has not changed since it was fetched last is not fetched again, unless it is small: the store's time of
        change counts whole seconds, in which a small file may have changed twice, to the same size.
        """
        if self._store is None:
            return
        wanted = [key for key in keys if ".." not in Path(key).parts]
        for key, stamp in zip(wanted, self._store.stamps(wanted), strict=True):
            path = self.folder / key
            if stamp and stamp[0] >= _SMALL_BYTES and self._seen.get(key) == stamp and path.is_file():
                continue
            if stamp is None or not self._store.download(key, path):
                path.unlink(missing_ok=True)
                self._seen.pop(key, None)
            else:
                self._seen[key] = stamp

    def fetch_folder(self, folder: str) -> None:
        """`fetch` for every file in a folder of the run, at any depth; what the run has lost goes here, too."""
        if self._store is not None:
            copies = {path.relative_to(self.folder).as_posix() for path in files_in(self.folder / folder)}
            self.fetch(copies.union(self._store.list_keys(folder)))

    def fetch_recorded(self, artifacts: Iterable[Artifact]) -> None:
        """Fetch the recorded files that `folder` does not hold as recorded, or that the run itself does not."""
        items = list(artifacts)
        if self._store is not None:
            stamps = self._store.stamps([item.path for item in items])
            there = [item for item, stamp in zip(items, stamps, strict=True) if stamp and stamp[0] == item.size_bytes]
            kept = {item.path for item in there if is_whole(self.folder, item)}
            self.fetch(item.path for item in items if item.path not in kept)

    def damaged(self, artifacts: Iterable[Artifact]) -> list[str]:
        """Those of the recorded files that are missing or whose bytes are others. The whole ones are in `folder`."""
        items = list(artifacts)
        self.fetch_recorded(items)
        return [item.path for item in items if not is_whole(self.folder, item)]

    def publish(self, path: str) -> None:
        """Let everybody see a file, or every file of a folder."""
        if self._store is None:
            return
        place = self.folder / path
        for file in files_in(place) if place.is_dir() else [place]:
            self._store.upload(file, file.relative_to(self.folder).as_posix())

    def discard(self, path: str) -> None:
        """Delete a file of the run, or a folder, and what stands for it."""
        place = self.folder / path
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        if self._store is not None:
            for key in [path, *self._store.list_keys(path)]:
                self._store.delete(key)
            self._seen = {key: stamp for key, stamp in self._seen.items() if not f"{key}/".startswith(f"{path}/")}

    @contextmanager
    def locked(self, key: str, make: bool = False) -> Iterator[None]:
        """Hold the file of that key, in a folder that is there or that `make` makes; UserError if that takes too long.

        A store has no locks: nothing is held there.
        """
        path = self.folder / key
        if self._store is not None:
            yield
            return
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        expected = "that no other launch or resume is in the midst of changing this run, but one has held the lock"
        held = f"{expected} {path} for {_LOCK_WAIT_S:.0f} s"
        remedy = "Make sure that it has ended (it may be halted), and start this one again."
        with locked(path, _LOCK_WAIT_S, lambda: user_error("DIR", self.location, held, remedy)):
            yield

    def unusable(self, error: OSError) -> UserError:
        """For people: why the run cannot be there."""
        if self._store is not None:
            expected = f"a store that answers, and a bucket that exists ({error})"
            remedy = "Check the credentials and the endpoint (AWS_ENDPOINT_URL), or give a folder."
        elif (file := next(filter(Path.is_file, (self.folder, *self.folder.parents)), None)) is not None:
            expected, remedy = f"a folder, and {file} is a file", "Name another."
        else:
            expected = f"a folder that can be written ({error.strerror or error})"
            remedy = "Free some space there" if error.errno in NO_SPACE else "Make it writable"
            remedy += ", or give another DIR."
        return user_error("DIR", self.location, expected, remedy)


def _object_url(location: str | Path) -> str | None:
    """The URL, if the location is in an object store; also after `Path` has joined its slashes."""
    check_place("DIR", location)
    found = _URL.fullmatch(str(location))
    if not found and not str(location).startswith("file:") and is_url(location):
        raise user_error("DIR", location, "a folder, or a URL that begins with s3://, gs:// or file://", "Give one.")
    return f"{found[1]}://{found[2].rstrip('/')}" if found else None


def _folder_of(location: str | Path) -> Path:
    text = str(location)
    return Path(unquote(urlsplit(text).path) if text.startswith("file:/") else text).resolve()
