"""Files that are what was recorded of them: read and verified in one go, so that what is used is what was hashed."""

from __future__ import annotations

from hashlib import sha256 as sha_256
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.digest import file_digest

if TYPE_CHECKING:  # it is sealed, so comes after this
    from schemas.job import Artifact


class DamagedFileError(ValueError):
    """A file that is missing, or not what was recorded of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path} is missing or not what was written"


def read_verified(path: Path, sha256: str | None) -> bytes:
    """The file's bytes. DamagedFileError if they are not those of the digest, or if there is no file or no digest."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DamagedFileError(path) from None
    if sha_256(data).hexdigest() != sha256:
        raise DamagedFileError(path)
    return data


def check_file(path: Path, sha256: str | None) -> None:
    """Raise DamagedFileError unless there is a file of this digest; for what is too large to be read at once."""
    if not path.is_file() or file_digest(path) != sha256:
        raise DamagedFileError(path)


def is_whole(run_dir: Path, item: Artifact) -> bool:
    """Whether a recorded file is there, in the run itself and not behind a link, with the recorded bytes."""
    path = run_dir / item.path
    if path.resolve() != run_dir.resolve() / item.path or not path.is_file():
        return False
    return path.stat().st_size == item.size_bytes and file_digest(path) == item.sha256
