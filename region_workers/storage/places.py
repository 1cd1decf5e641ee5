"""Folders of this machine: the cache, and whether one can be written and leads nowhere else."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from schemas.errors import user_error

SCRATCH_FOLDER = "work"  # in the cache: where whoever works on a run in an object store has its files


def cache_dir_of(chosen: str | Path | None = None) -> Path:
    """The cache: as chosen, else the environment's EBDIFF_CACHE, else ~/.cache/ebdiff."""
    return Path(chosen or os.environ.get("EBDIFF_CACHE") or "~/.cache/ebdiff").expanduser()


def nothing_at(place: str, then: str = ": check the path.") -> str:
    """What to do about a path of a plan at which there is nothing, or a URL; `then`: the end of the sentence."""
    if "://" in place:
        return "Give a copy in a folder that all workers see; no field of a plan can be a URL."
    return f"There is no file or folder at {Path(place).expanduser().absolute()}{then}"


def check_no_links(folder: Path, but_in: str) -> None:
    """Raise UserError for a symbolic link below `folder`: what is written or deleted there must lie there.

    `but_in`: a folder in it that may have some.
    """
    for parent, folders, files in os.walk(folder):
        links = [Path(parent, name) for name in (*folders, *files) if Path(parent, name).is_symlink()]
        if links:
            found = f"{links[0]} -> {links[0].readlink()}"
            remedy = "Replace it by what it points to, or give another folder."
            raise user_error("DIR", folder, f"no symbolic link in a run, but there is {found}", remedy)
        if Path(parent) == folder and but_in in folders:
            folders.remove(but_in)


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
