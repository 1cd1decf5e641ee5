"""Where things lie: a run, in a folder or an object store; this machine's cache."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from schemas.errors import UserError, problem, shown
from schemas.secrets import holds_secret

_MOST_NAME_BYTES, _MOST_PATH_BYTES = 255, 4000  # of Linux' file systems; 4096 with what is put below a folder
_SCHEMES = ("s3", "gs", "gcs")
_URL = re.compile(rf"({'|'.join(_SCHEMES)}):/+(.+)", re.DOTALL)


def fault_of_place(place: str) -> str | None:
    """What would have been expected of a path or URL that no system can take, or that holds a secret; else None."""
    try:
        encoded = place.encode()
    except UnicodeEncodeError:
        return "a path in UTF-8"
    if b"\0" in encoded:
        return "a path without null characters"
    if len(encoded) > _MOST_PATH_BYTES or max(map(len, encoded.split(b"/"))) > _MOST_NAME_BYTES:
        return f"a path of at most {_MOST_PATH_BYTES} bytes, and {_MOST_NAME_BYTES} in each name"
    if holds_secret(place):
        return "a URL without a key in it: the environment gives it (AWS_ACCESS_KEY_ID, ...), or the machine's role"
    return None


def check_place(field: str, place: str | Path) -> None:
    """Raise UserError, naming `field`, if there can be no such path or URL, or if it holds a secret."""
    fault = fault_of_place(str(place))
    if fault is not None:
        raise UserError(problem(field, shown(place), fault, "Give another."))


def object_url(location: str | Path) -> str | None:
    """The URL, if the location is in an object store; also after `Path` has joined its slashes. None for a folder.

    Raises UserError for a location that cannot be, or that holds a secret.
    """
    check_place("DIR", location)
    found = _URL.fullmatch(str(location))
    return f"{found[1]}://{found[2].rstrip('/')}" if found else None


def folder_of(location: str | Path) -> Path:
    """The folder that a path or a `file://` URL names, absolute."""
    text = str(location)
    if text.startswith("file:/"):
        text = unquote(urlsplit(text).path)
    return Path(text).resolve()


def default_cache_dir() -> Path:
    """Where decoded images are kept: the environment's EBDIFF_CACHE, else ~/.cache/ebdiff."""
    return Path(os.environ.get("EBDIFF_CACHE") or "~/.cache/ebdiff").expanduser()
