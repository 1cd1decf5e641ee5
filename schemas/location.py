"""Where things lie: a run, in a folder or an object store; this machine's cache."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SCHEMES = ("s3", "gs", "gcs")
_URL = re.compile(rf"({'|'.join(_SCHEMES)}):/+(.+)", re.DOTALL)


def object_url(location: str | Path) -> str | None:
    """The URL, if the location is in an object store; also after `Path` has joined its slashes. None for a folder."""
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
