"""Files under one URL of an object store, through pyarrow's filesystems: s3:// and gs://."""

from __future__ import annotations

import shutil
from pathlib import Path

from pyarrow import fs

from schemas.durable import write_file
from schemas.errors import UserError

_BUFFER_BYTES = 8 << 20


class ObjectStore:
    """Objects by their keys under the URL. An object is there whole or not at all: a write shows when it is closed.

    Credentials and endpoint are found as the store's own tools find them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, an
    instance's role, ...). Raises UserError if the URL cannot be opened, OSError if the store does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._files, self._base = fs.FileSystem.from_uri(url)
        except (ValueError, OSError) as error:
            raise UserError(
                f"run directory = {url}: expected a URL that pyarrow.fs opens ({error}). "
                "Check bucket, region and credentials, or give a folder."
            ) from None

    def names(self, prefix: str) -> list[str]:
        """The names of the objects directly under `prefix`."""
        selector = fs.FileSelector(self._path(prefix), allow_not_found=True)
        return sorted(info.base_name for info in self._files.get_file_info(selector) if info.type == fs.FileType.File)

    def list_keys(self, prefix: str = "") -> list[str]:
        """The keys of all objects under `prefix`, at any depth."""
        selector = fs.FileSelector(self._path(prefix), allow_not_found=True, recursive=True)
        found = self._files.get_file_info(selector)
        return sorted(info.path[len(self._base) + 1 :] for info in found if info.type == fs.FileType.File)

    def stamps(self, keys: list[str]) -> list[tuple[int, int] | None]:
        """Size and time of change of each object, None where there is none: another stamp is another content."""
        infos = self._files.get_file_info([self._path(key) for key in keys])
        return [(info.size, info.mtime_ns or 0) if info.type == fs.FileType.File else None for info in infos]

    def read(self, key: str) -> bytes:
        """An object's bytes. FileNotFoundError if there is none."""
        with self._files.open_input_stream(self._path(key)) as stream:
            data: bytes = stream.read()
        return data

    def write(self, key: str, data: bytes) -> None:
        """Put an object in one move."""
        with self._files.open_output_stream(self._path(key)) as stream:
            stream.write(data)

    def upload(self, path: Path, key: str) -> None:
        """Put a file's bytes."""
        with path.open("rb") as source, self._files.open_output_stream(self._path(key)) as stream:
            shutil.copyfileobj(source, stream, _BUFFER_BYTES)

    def download(self, key: str, path: Path) -> None:
        """Write an object to `path`, whole or not at all. FileNotFoundError if there is none."""
        with self._files.open_input_stream(self._path(key)) as stream:

            def copy(temporary: Path) -> None:
                with temporary.open("wb") as target:
                    shutil.copyfileobj(stream, target, _BUFFER_BYTES)

            write_file(path, copy)

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        try:
            self._files.delete_file(self._path(key))
        except FileNotFoundError:
            return

    def _path(self, key: str) -> str:
        return f"{self._base}/{key}" if key else self._base
