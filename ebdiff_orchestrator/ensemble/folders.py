"""Durable folders that replace an older one of their own kind only, never somebody's other files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from schemas.durable import write_folder
from schemas.errors import UserError, problem


def check_own_folder(path: Path, is_own: Callable[[Path], bool], kind: str) -> None:
    """Raise `UserError` if `path` holds anything that is not `kind`."""
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or is_own(path))):
        raise UserError(
            problem("folder", path, f"a new or empty folder, or one that holds {kind}", "Choose another folder.")
        )


def write_own_folder(path: Path, write: Callable[[Path], None], is_own: Callable[[Path], bool], kind: str) -> None:
    """`schemas.durable.write_folder`, refused with a `UserError` where `path` holds anything that is not `kind`."""
    check_own_folder(path, is_own, kind)
    write_folder(path, write)
