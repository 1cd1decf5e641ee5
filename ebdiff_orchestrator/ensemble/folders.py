"""Durable folders that replace an older one of their own kind only, and are read only as they were written."""

from collections.abc import Callable
from pathlib import Path

from region_workers.storage.durable import write_folder
from region_workers.storage.integrity import (
    SEAL_FILE,
    DamagedFileError,
    check_sealed,
    file_digests,
    read_verified,
    sealed_files,
)
from region_workers.storage.places import check_no_url
from schemas.errors import UserError, user_error

SUMS_FILE = "SHA256SUMS"


def check_own_folder(path: Path, is_own: Callable[[Path], bool], kind: str, field: str = "folder") -> None:
    """Raise `UserError`, naming `field`, if `path` is a URL or holds anything that is not `kind`."""
    check_no_url(path, field)
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or is_own(path))):
        raise user_error(field, path, f"a new or empty folder, or one that holds {kind}", "Choose another folder.")


def write_own_folder(path: Path, write: Callable[[Path], None], is_own: Callable[[Path], bool], kind: str) -> None:
    """`write_folder`, refused with a `UserError` where `path` holds anything that is not `kind`."""
    check_own_folder(path, is_own, kind)
    write_folder(path, write)


def check_whole(folder: Path, is_own: Callable[[Path], bool]) -> None:
    """Raise `UserError`, naming the file, if one of a folder of ours, which is sealed, is not what was written."""
    if (folder / SEAL_FILE).is_file() or is_own(folder):
        try:
            check_sealed(folder, own_seal=True)
        except DamagedFileError as error:
            raise damaged(error.path) from None


def read_sealed(path: Path) -> bytes:
    """A file's bytes, verified by the seal that knows its folder, if one does. `UserError` if they are others."""
    try:
        known = sealed_files(path.parent)
        return read_verified(path, known.get(path.name)) if known else path.read_bytes()
    except DamagedFileError as error:
        raise damaged(error.path) from None
    except FileNotFoundError:
        raise damaged(path) from None


def has_sums(folder: Path) -> bool:
    """Whether `write_sums` was here."""
    return (folder / SUMS_FILE).is_file()


def write_sums(folder: Path) -> None:
    """The digests of all that is in the folder, as `sha256sum -c` reads them, for whoever has no ebdiff at hand."""
    lines = [f"{sha256}  {name}\n" for name, sha256 in file_digests(folder).items()]
    (folder / SUMS_FILE).write_text("".join(lines))


def damaged(path: Path) -> UserError:
    """What people are told of a file that is not what was saved."""
    remedy = "Restore it; in a run, `ebdiff resume` makes the ensemble again, to the same bits."
    return user_error("path", path, "the file as it was saved, unchanged", remedy)
