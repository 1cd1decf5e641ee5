"""Files that are what was recorded of them: read and verified in one go, so that what is used is what was hashed.

And JSON files that anybody may have changed, a run's manifest among them: read, or refused with the reason.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from region_workers.storage.durable import write_model
from schemas.errors import UserError
from schemas.job import RESULT_FILE, Artifact, DrawStage, StageResult, TrainStage
from schemas.manifest import MANIFEST_FILE, MANIFEST_VERSION, Manifest
from schemas.section import Sealed, seal_fits

SEAL_FILE = "seal.json"
_LEVELS = 2  # how far above a network's folder its seal lies at most

_Model = TypeVar("_Model", bound=BaseModel)


class DamagedFileError(ValueError):
    """A file that is missing, or not what was recorded of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path} is missing or not what was written"


def files_in(folder: Path) -> list[Path]:
    """All files below the folder, in order; what is deleted meanwhile may be left out."""
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)  # rglob fails at it
    return sorted(path for path in paths if path.is_file())


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_digest(pieces: Iterable[bytes | memoryview]) -> str:
    sha = hashlib.sha256()
    for piece in pieces:
        sha.update(piece)
    return sha.hexdigest()


def read_verified(path: Path, sha256: str | None) -> bytes:
    """The file's bytes. DamagedFileError if they are not those of the digest, or if there is no file or no digest."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DamagedFileError(path) from None
    if bytes_digest([data]) != sha256:
        raise DamagedFileError(path)
    return data


def holds(path: Path, sha256: str | None) -> bool:
    """Whether there is a file with the bytes of this digest; for what is too large to be read at once."""
    return path.is_file() and file_digest(path) == sha256


def check_file(path: Path, sha256: str | None) -> None:
    """Raise DamagedFileError unless the file `holds` the bytes of this digest."""
    if not holds(path, sha256):
        raise DamagedFileError(path)


def check_files(folder: Path, sha256: Mapping[str, str]) -> None:
    for name, digest in sha256.items():
        check_file(folder / name, digest)


def file_digests(folder: Path) -> dict[str, str]:
    """The digest of every file below the folder, by path."""
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files_in(folder)}


def artifact(run_dir: Path, path: Path) -> Artifact:
    return Artifact(path=path.relative_to(run_dir).as_posix(), size_bytes=path.stat().st_size, sha256=file_digest(path))


def is_whole(run_dir: Path, item: Artifact) -> bool:
    """Whether a recorded file is there, in the run itself and not behind a link, with the recorded bytes."""
    path = run_dir / item.path
    inside = path.resolve() == run_dir.resolve() / item.path and path.is_file()
    return inside and path.stat().st_size == item.size_bytes and holds(path, item.sha256)


def finished_result(run_dir: Path, stage: DrawStage | TrainStage) -> StageResult | None:
    """The result that the stage left, if it finished.

    It must be of the stage's key, of as many steps as asked, and made from inputs that are still there unchanged.
    """
    result = read_if_whole(StageResult, run_dir / stage.name / RESULT_FILE)
    if result is None or result.key != stage.key or (isinstance(stage, TrainStage) and result.steps != stage.steps):
        return None
    return result if all(is_whole(run_dir, item) for item in result.inputs) else None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError, saying what is wrong with it, for a file that holds none."""
    if path.exists() and not path.is_file():  # to read a pipe would wait for its other end
        raise ValueError(f"{path.name} is no regular file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return values


def read_if_whole(model: type[_Model], path: Path) -> _Model | None:
    """What a process writes and replaces as it goes; None where it is not there, or not as it was written."""
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def read_manifest(run_dir: Path) -> Manifest:
    """The manifest in a run directory. UserError if it is not one that this version reads."""
    try:
        values = read_object(run_dir / MANIFEST_FILE)
        if not seal_fits(values):
            raise ValueError("it is not what was written")
        if values.get("version") == MANIFEST_VERSION:
            return Manifest.model_validate(values)
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(
            f"DIR = {run_dir}: {MANIFEST_FILE} is damaged ({reason}); expected it as it was written. "
            "Put a copy of it back, or delete it and launch the run's plan there again: what is finished is found, and "
            "not done again."
        ) from None
    raise UserError(
        f"DIR = {run_dir}: {MANIFEST_FILE} is of version {values.get('version')}; expected {MANIFEST_VERSION}. "
        "Use the version of ebdiff-orchestrator that wrote it, or start a new run."
    )


class FolderSeal(Sealed):
    """What a folder holds: a digest (SHA-256) a file, by path. A subfolder with a seal of its own stands for itself."""

    sha256: dict[str, str]


def seal_folder(folder: Path) -> None:
    """Note what is in the folder, in a file of its own."""
    write_model(folder / SEAL_FILE, FolderSeal(sha256={name: file_digest(folder / name) for name in _files(folder)}))


def sealed_files(folder: Path) -> dict[str, str]:
    """The digests of a folder's files by name, from its seal or that of a folder around it; empty: no seal knows it.

    DamagedFileError if a seal on the way is missing or not what was written.
    """
    place = folder.absolute()
    without: list[Path] = []
    for around in (place, *place.parents[:_LEVELS]):
        seal = (folder if around == place else around) / SEAL_FILE
        if not seal.is_file():
            without.append(around)
            continue
        folder_seal = read_if_whole(FolderSeal, seal)
        if folder_seal is None:
            raise DamagedFileError(seal)
        known = folder_seal.sha256
        for inner in without:
            if (inner / SEAL_FILE).relative_to(around).as_posix() in known:
                raise DamagedFileError(inner / SEAL_FILE)
        start = "" if around == place else f"{place.relative_to(around).as_posix()}/"
        return {name.removeprefix(start): sha256 for name, sha256 in known.items() if name.startswith(start)}
    return {}


def check_sealed(folder: Path, own_seal: bool = False) -> None:
    """Raise DamagedFileError if a file of the folder is not what a seal, its own or one around it, says of it.

    `own_seal`: it must have one of its own.
    """
    if own_seal and not (folder / SEAL_FILE).is_file():
        raise DamagedFileError(folder / SEAL_FILE)
    check_files(folder, sealed_files(folder))


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
