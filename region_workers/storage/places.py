"""Folders: the cache, those that a plan names, here or on the Hugging Face hub, and whether one can be written."""

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from schemas.errors import plan_error, user_error

SCRATCH_FOLDER = "work"  # in the cache: where whoever works on a run in an object store has its files

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # Path may have joined its slashes
_STATUS = re.compile(r"\d{3} \w+ Error\b")


class HubError(Exception):
    """The hub has no such folder for us, and nobody downloaded it before; the message says why, in a line."""


def cache_dir_of(chosen: str | Path | None = None) -> Path:
    """The cache: as chosen, else the environment's EBDIFF_CACHE, else ~/.cache/ebdiff."""
    return Path(chosen or os.environ.get("EBDIFF_CACHE") or "~/.cache/ebdiff").expanduser()


def nothing_at(place: str, then: str = ": check the path.") -> str:
    """What to do about a path of a plan at which there is nothing, or a URL; `then`: the end of the sentence."""
    if "://" in place:
        return "Give a copy in a folder that all workers see; no field of a plan can be a URL."
    return f"There is no file or folder at {Path(place).expanduser().absolute()}{then}"


def find_model(
    field: str, place: str, expected: str, patterns: Sequence[str], without: Sequence[str] | None = None
) -> Path:
    """What a plan's `field` names: a path here, else what the hub has of that name. PlanError if there is neither.

    `expected`: for people. `patterns` and `without` are those of `download`.
    """
    path = Path(place).expanduser()
    if path.exists():
        return path
    if not is_hub_name(place):
        raise plan_error(field, place, expected, nothing_at(place))
    try:
        return download(place, patterns, without=without)
    except HubError as error:
        remedy = f"There is no such folder here, and the hub gives none ({error}): check the path or the name."
        raise plan_error(field, place, expected, remedy) from error


def is_hub_name(text: str) -> bool:
    return _HUB_NAME.fullmatch(text) is not None


def download(
    name: str, patterns: Sequence[str], revision: str | None = None, without: Sequence[str] | None = None
) -> Path:
    """The folder of what the hub's model `name` has under these patterns, but for those of `without`.

    `revision`: a branch, a tag or a commit. Nothing that was downloaded is run. Raises HubError.
    """
    from huggingface_hub import snapshot_download

    wanted, unwanted = list(patterns), None if without is None else list(without)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))
    except Exception as error:  # the hub's client raises of everything; each means the same to the user
        raise HubError(hub_reason(error)) from error


def hub_reason(error: Exception) -> str:
    """What the hub's client says, in a line; the first may be but the status."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not _STATUS.match(line)), lines[0] if lines else type(error).__name__)


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


def is_url(place: str | Path) -> bool:
    """Whether a place reads as a URL; a path whose first folder is there does not, though it be called `s3:`."""
    start = _URL.match(str(place))
    return start is not None and not Path(start[0]).exists()


def check_no_url(path: Path, field: str) -> None:
    """Raise UserError, naming `field`, for a URL, which would become a folder of that name here."""
    if is_url(path):
        raise user_error(field, path, "a path on this machine, not a URL", "Write it here, and copy it there.")


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
