"""The folders of a stage's checkpoints, by name alone: how far a training is can be asked without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

CHECKPOINT_FILE = "checkpoint.json"  # says that the files beside it are whole
_PREFIX = "step-"
_NAME = re.compile(rf"{_PREFIX}([0-9]{{9}}|[1-9][0-9]{{9,}})")


def checkpoint_name(step: int) -> str:
    """The name of the folder that holds a checkpoint of `step` updates."""
    return f"{_PREFIX}{step:09d}"


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in a stage's folder, whole or not, newest last."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if _NAME.fullmatch(path.name))


def newest_step(keys: Iterable[str]) -> int:
    """The steps of the newest whole checkpoint among a stage's files; 0 without one."""
    whole = [Path(key).parent.name for key in keys if Path(key).name == CHECKPOINT_FILE]
    return max((int(name.removeprefix(_PREFIX)) for name in whole if _NAME.fullmatch(name)), default=0)
