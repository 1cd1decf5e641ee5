"""JSON files that anybody may have changed, a run's manifest among them: read, or refused with the reason."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from schemas.errors import UserError
from schemas.manifest import MANIFEST_FILE, MANIFEST_VERSION, Manifest
from schemas.section import seal_fits

_Model = TypeVar("_Model", bound=BaseModel)


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
    except ValidationError as error:
        raise _damaged(run_dir, error.errors()[0]["msg"]) from None
    except ValueError as error:
        raise _damaged(run_dir, str(error)) from None
    raise UserError(
        f"DIR = {run_dir}: {MANIFEST_FILE} is of version {values.get('version')}; expected {MANIFEST_VERSION}. "
        "Use the version of ebdiff-orchestrator that wrote it, or start a new run."
    )


def _damaged(run_dir: Path, reason: str) -> UserError:
    return UserError(
        f"DIR = {run_dir}: {MANIFEST_FILE} is damaged ({reason}); expected it as it was written. "
        "Put a copy of it back, or delete it and launch the run's plan there again: what is finished is found, and "
        "not done again."
    )
