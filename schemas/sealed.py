"""Records and folders that say by themselves whether they are as they were written: a flipped bit is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from schemas.digest import digest, file_digest
from schemas.durable import write_model
from schemas.integrity import DamagedFileError, check_file
from schemas.section import Section

SEAL_FILE = "seal.json"
_SEAL = "seal"
_LEVELS = 2  # how far above a network's folder its seal lies at most


class Sealed(Section):
    """A record whose JSON ends with a digest of all the rest, which is checked where it is read."""

    @model_serializer(mode="wrap")
    def _write_seal(self, serialize: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        return {**values, _SEAL: digest(values)} if info.mode == "json" else values

    @model_validator(mode="before")
    @classmethod
    def _check_seal(cls, values: Any) -> Any:
        if not isinstance(values, dict) or _SEAL not in values:
            return values
        if not seal_fits(values):
            raise ValueError("it is not what was written: its seal does not fit")
        return {name: value for name, value in values.items() if name != _SEAL}


class FolderSeal(Sealed):
    """What a folder holds: a digest (SHA-256) a file, by path. A subfolder with a seal of its own stands for itself."""

    sha256: dict[str, str]


def seal_fits(values: dict[str, Any]) -> bool:
    """Whether values read from JSON are those that a `Sealed` wrote; true also of those without a seal."""
    rest = {name: value for name, value in values.items() if name != _SEAL}
    return bool(values.get(_SEAL, digest(rest)) == digest(rest))


def seal_folder(folder: Path) -> None:
    """Note what is in the folder, in a file of its own."""
    write_model(folder / SEAL_FILE, FolderSeal(sha256={name: file_digest(folder / name) for name in _files(folder)}))


def broken_in(folder: Path) -> str | None:
    """The first file of a folder that was sealed which is missing or not what was written, the seal too; None: none."""
    try:
        seal = FolderSeal.model_validate_json((folder / SEAL_FILE).read_bytes())
    except (ValueError, OSError):
        return SEAL_FILE
    broken = (name for name, sha256 in seal.sha256.items() if not _is_whole(folder / name, sha256))
    return next(broken, None)


def sealed_files(folder: Path) -> dict[str, str]:
    """The digests of a folder's files by name, from its seal or that of a folder around it; empty: no seal knows it.

    DamagedFileError if a seal on the way is missing or not what was written.
    """
    folder = folder.absolute()
    for around in (folder, *folder.parents[:_LEVELS]):
        if not (around / SEAL_FILE).is_file():
            continue
        try:
            known = FolderSeal.model_validate_json((around / SEAL_FILE).read_bytes()).sha256
        except ValueError:
            raise DamagedFileError(around / SEAL_FILE) from None
        start = "" if folder == around else f"{folder.relative_to(around).as_posix()}/"
        between = [inner / SEAL_FILE for inner in (folder, *folder.parents[:_LEVELS]) if around in inner.parents]
        lost = [seal for seal in between if seal.relative_to(around).as_posix() in known]  # else it had been met
        if lost:
            raise DamagedFileError(lost[0])
        return {name.removeprefix(start): sha256 for name, sha256 in known.items() if name.startswith(start)}
    return {}


def check_sealed(folder: Path) -> None:
    """Raise DamagedFileError if a file of the folder is not what a seal, its own or one around it, says of it."""
    for name, sha256 in sealed_files(folder).items():
        check_file(folder / name, sha256)


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and file_digest(path) == sha256


def _files(folder: Path, start: str = "") -> list[str]:
    """The paths of the files that a seal of the folder covers."""
    names = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / SEAL_FILE).is_file():
            names.append(f"{start}{path.name}/{SEAL_FILE}")
        elif path.is_dir():
            names += _files(path, f"{start}{path.name}/")
        elif path.name != SEAL_FILE:
            names.append(f"{start}{path.name}")
    return names
