"""Durable folders that replace an older one of their own kind only, and are read only as they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from schemas.durable import write_folder
from schemas.errors import UserError, problem
from schemas.sealed import broken_in


def check_own_folder(path: Path, is_own: Callable[[Path], bool], kind: str, field: str = "folder") -> None:
    """Raise `UserError`, naming `field`, if `path` holds anything that is not `kind`."""
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or is_own(path))):
        raise UserError(
            problem(field, path, f"a new or empty folder, or one that holds {kind}", "Choose another folder.")
        )


def write_own_folder(path: Path, write: Callable[[Path], None], is_own: Callable[[Path], bool], kind: str) -> None:
    """`schemas.durable.write_folder`, refused with a `UserError` where `path` holds anything that is not `kind`."""
    check_own_folder(path, is_own, kind)
    write_folder(path, write)


def check_whole(folder: Path) -> None:
    """Raise `UserError`, naming the file, if one of a sealed folder is missing or not what was written."""
    broken = broken_in(folder)
    if broken is not None:
        remedy = "Restore it; in a run, `ebdiff resume` makes the ensemble again, to the same bits."
        raise UserError(problem("path", folder / broken, "the file as it was saved, unchanged", remedy))
