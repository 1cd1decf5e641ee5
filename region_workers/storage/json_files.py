"""JSON files that come from elsewhere: read as an object, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
