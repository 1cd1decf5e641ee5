"""What a user tells Ray outside the plan, looked at before anything is made: its address, and the folder for work."""

from __future__ import annotations

import os
import re
from pathlib import Path

from region_workers.storage.places import check_writable_folder
from schemas.errors import UserError, problem
from schemas.section import check_place

_ADDRESS = re.compile(r"auto|local|(ray://)?([^\s:/@]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}")
_FOLDERS = ("RAY_TMPDIR", "TMPDIR")  # Ray takes the first that is set
_SOCKET = "/eb-00000000/r/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"  # what stands below it
_LONGEST_SOCKET = 107  # bytes; Linux' limit


def cluster_address(address: str | None) -> str | None:
    """The cluster to join: the one named, else RAY_ADDRESS; None for an embedded Ray. UserError if it is no address."""
    name, found = ("--address", address) if address else ("RAY_ADDRESS", os.environ.get("RAY_ADDRESS"))
    if found and not _ADDRESS.fullmatch(found):
        raise UserError(problem(name, found, "HOST:PORT, ray://HOST:PORT or auto", "Correct it, or leave it out."))
    return found or None


def check_surroundings(address: str | None) -> None:
    """Raise UserError for an address that is none, and for folders in which no embedded Ray can work."""
    if cluster_address(address) is not None:
        return
    given = [name for name in _FOLDERS if os.environ.get(name)]
    for name in given:
        check_place(name, os.environ[name])
        check_writable_folder(Path(os.environ[name]), name)
    if given and len(os.fsencode(os.environ[given[0]] + _SOCKET)) > _LONGEST_SOCKET:
        expected = f"a path of at most {_LONGEST_SOCKET - len(_SOCKET)} bytes, since Ray puts sockets below it"
        raise UserError(problem(given[0], os.environ[given[0]], expected, "Set it to a shorter one, as /tmp."))
