"""Files under one URL of an object store, through pyarrow's filesystems: s3:// and gs://."""

import random
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pyarrow import fs

from region_workers.storage.durable import write_file
from schemas.errors import RunFailed, user_error, without_secrets

SHORT_LIMIT_S = 10.0
_BUFFER_BYTES = 8 << 20
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _SAID_EVERY_S = 0.5, 15.0, 30.0
_GONE = re.compile(r"(RESOURCE_NOT_FOUND|NO_SUCH_KEY).* during GetObject")  # deleted since it was looked up
_PASSES = re.compile(
    "NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|THROTTLING|UNAVAILABLE|"
    "DEADLINE_EXCEEDED|HTTP status 5|curlCode|time-?d? ?out",
    re.IGNORECASE,
)

T = TypeVar("T")


class StoreSilentError(RunFailed, OSError):
    """The store has not answered for longer than it may."""


class ObjectStore:
    """Objects by their keys under the URL. An object is there whole or not at all: a write shows when it is closed.

    Credentials and endpoint are found as the store's own tools find them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, an
    instance's role, ...). Raises UserError if the URL cannot be opened, OSError for what the store refuses. Where it
    does not answer, every operation is tried again until `limit_s` have passed without one (`silent_since`: from when,
    by the monotonic clock); then StoreSilentError.
    """

    def __init__(self, url: str, limit_s: float = SHORT_LIMIT_S) -> None:
        self.url, self.limit_s = url, limit_s
        self.silent_since: float | None = None
        self._said_at = -_SAID_EVERY_S
        try:
            self._files, self._base = self._patiently(lambda: fs.FileSystem.from_uri(url))
        except StoreSilentError:
            raise
        except (ValueError, OSError) as error:
            remedy = "Check bucket, region and credentials, or give a folder."
            raise user_error("run directory", url, f"a URL that pyarrow.fs opens ({error})", remedy) from None

    def list_keys(self, prefix: str = "") -> list[str]:
        selector = fs.FileSelector(self._path(prefix), allow_not_found=True, recursive=True)
        found = self._patiently(lambda: self._files.get_file_info(selector))
        return sorted(info.path[len(self._base) + 1 :] for info in found if info.type == fs.FileType.File)

    def stamps(self, keys: list[str]) -> list[tuple[int, int] | None]:
        """Size and time of change of each object, None where there is none: another stamp is another content."""
        infos = self._patiently(lambda: self._files.get_file_info([self._path(key) for key in keys]))
        return [(info.size, info.mtime_ns or 0) if info.type == fs.FileType.File else None for info in infos]

    def read(self, key: str) -> bytes:
        def read() -> bytes:
            with self._files.open_input_stream(self._path(key)) as stream:
                data: bytes = stream.read()
            return data

        return self._patiently(read)

    def write(self, key: str, data: bytes) -> None:
        def write() -> None:
            with self._files.open_output_stream(self._path(key)) as stream:
                stream.write(data)

        self._patiently(write)

    def upload(self, path: Path, key: str) -> None:
        """Put a file's bytes. If it cannot be read to its end, what was there stays, or nothing does.

        pyarrow closes a stream whatever happens, and so shows what was written by then: the first piece is read before
        there is a stream, and what is shown after a failure at a later one is deleted.
        """

        def upload() -> None:
            failure: OSError | None = None
            with path.open("rb") as source:
                piece = source.read(_BUFFER_BYTES)
                with self._files.open_output_stream(self._path(key)) as stream:
                    while piece:
                        stream.write(piece)
                        try:
                            piece = source.read(_BUFFER_BYTES)
                        except OSError as error:
                            failure = error
                            break
            if failure is not None:
                self._files.delete_file(self._path(key))
                raise failure

        self._patiently(upload)

    def download(self, key: str, path: Path) -> bool:
        """Write an object to `path`, whole or not at all; whether there is one."""

        def copy(temporary: Path) -> None:
            with self._files.open_input_stream(self._path(key)) as stream, temporary.open("wb") as target:
                shutil.copyfileobj(stream, target, _BUFFER_BYTES)

        try:
            self._patiently(lambda: write_file(path, copy))
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._patiently(lambda: self._files.delete_file(self._path(key)))

    def _patiently(self, act: Callable[[], T]) -> T:
        """Do it, again and again where the store does not answer."""
        pause_s = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                done = act()
            except OSError as error:
                if not _may_pass(error):
                    self.silent_since = None
                    if _GONE.search(str(error)):
                        raise FileNotFoundError(str(error)) from None
                    raise
                self._wait(began, pause_s * random.uniform(0.5, 1), error)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self.silent_since = None
                return done

    def _wait(self, began: float, pause_s: float, error: OSError) -> None:
        """Say that the store is silent, and wait a while; StoreSilentError once it has been so for too long."""
        now = time.monotonic()
        since = self.silent_since = min(began, self.silent_since or began)
        left_s = since + self.limit_s - now
        clock = datetime.fromtimestamp(time.time() - (now - since)).strftime("%H:%M:%S")
        silence = f"{without_secrets(self.url)}: the store has not answered since {clock}"
        if left_s <= 0:
            raise StoreSilentError(
                f"{silence} ({error}). Check the network, the endpoint "
                "(AWS_ENDPOINT_URL) and workers.store_limit_s; what is saved stays for `ebdiff resume`."
            ) from None
        if now - self._said_at >= _SAID_EVERY_S:
            self._said_at = now
            print(f"{silence}; trying for another {left_s:.0f} s", file=sys.stderr, flush=True)
        time.sleep(min(pause_s, left_s))

    def _path(self, key: str) -> str:
        return f"{self._base}/{key}" if key else self._base


def _may_pass(error: OSError) -> bool:
    """Whether a failure is that of the way to the store, or of its machines: not what it refuses, nor this disk's."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return error.errno is None and bool(_PASSES.search(str(error)))
