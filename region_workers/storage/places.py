"""Folders by their names: the cache, a run's, those of its checkpoints; none of torch is needed to look at them."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from schemas.errors import user_error

CHECKPOINT_FILE = "checkpoint.json"  # says that the files beside it are whole
_PREFIX = "step-"
_NAME = re.compile(rf"{_PREFIX}([0-9]{{9}}|[1-9][0-9]{{9,}})")


def cache_dir_of(chosen: str | Path | None = None) -> Path:
    """The cache: as chosen, else the environment's EBDIFF_CACHE, else ~/.cache/ebdiff."""
    return Path(chosen or os.environ.get("EBDIFF_CACHE") or "~/.cache/ebdiff").expanduser()


def check_no_links(folder: Path) -> None:
    """Raise UserError if there is a symbolic link below `folder`: what is written or deleted there must lie there."""
    for parent, folders, files in os.walk(folder):
        links = [Path(parent, name) for name in (*folders, *files) if Path(parent, name).is_symlink()]
        if links:
            found = f"{links[0]} -> {links[0].readlink()}"
            remedy = "Replace it by what it points to, or give another folder."
            raise user_error("DIR", folder, f"no symbolic link in a run, but there is {found}", remedy)


def check_writable_folder(path: Path, field: str) -> None:
    """Raise UserError, naming `field`, unless `path` is a folder that can be written, or can be made.

    It is tried, since permissions do not tell of read-only and full disks; nothing of it stays.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        remedy = f"It cannot be ({error.strerror}): choose another place."
        raise user_error(field, path, "a folder that can be made and written", remedy) from None
    finally:
        for each in missing:
            with suppress(OSError):
                each.rmdir()


def checkpoint_name(step: int) -> str:
    """The name of the folder that holds a checkpoint of `step` updates."""
    return f"{_PREFIX}{step:09d}"


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in a stage's folder, whole or not, newest last."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if _NAME.fullmatch(path.name))


def newest_step(keys: Iterable[str]) -> int:
    """The steps of the newest whole checkpoint among a stage's files; 0 without one."""
    whole = [Path(key).parent.name for key in keys if Path(key).name == CHECKPOINT_FILE]
    return max((int(name.removeprefix(_PREFIX)) for name in whole if _NAME.fullmatch(name)), default=0)
