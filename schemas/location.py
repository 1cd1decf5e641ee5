"""Paths and URLs that can be: what no system can take, or holds a secret, is refused."""

from __future__ import annotations

from pathlib import Path

from schemas.errors import UserError, holds_secret, problem, shown

_MOST_NAME_BYTES, _MOST_PATH_BYTES = 255, 4000  # of Linux' file systems; 4096 with what is put below a folder


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
