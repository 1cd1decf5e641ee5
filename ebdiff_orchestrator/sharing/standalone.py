"""What stands for its namesakes of this package in the modules of an exported ensemble, which run without it.

`modules.py` takes a definition from here wherever our sources use one of the same name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from torch import nn

from schemas.errors import UserError, user_error


@dataclass(frozen=True)
class KeptChannels:
    """The channels of one layer that stay, as indices into the dense layer; None: all of them."""

    outputs: tuple[int, ...] | None = None
    inputs: tuple[int, ...] | None = None

    @classmethod
    def model_validate(cls, values: Mapping[str, Sequence[int] | None]) -> KeptChannels:
        """From a network's config."""
        return cls(**{side: None if indices is None else tuple(indices) for side, indices in values.items()})


@dataclass(frozen=True)
class RasterPlan:
    """How a drawing is rendered: a square picture, black lines on white, `margin` of it white on each side."""

    canvas_px: int = 64
    line_width_px: float = 1.0
    margin: float = 0.05


def class_at(path: str) -> Any:
    """The class of that name: one of diffusers' networks or one that is defined here."""
    module, _, name = path.rpartition(".")
    found = getattr(diffusers, name, None) if module == "diffusers" else globals().get(name)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise user_error("expert_classes", path, "a network of diffusers or of this module", "Export the run again.")
    return found


def check_whole(folder: Path, is_own: Callable[[Path], bool]) -> None:
    """Raise `UserError`, naming the file, if one of the folder is not what was exported: its seal.json has the sums."""
    seal = folder / "seal.json"
    if not is_own(folder):
        return
    try:
        known: dict[str, str] = json.loads(seal.read_text())["sha256"]
    except (OSError, ValueError, KeyError):
        raise damaged(seal) from None
    for name, sha256 in known.items():
        if hashlib.sha256(read_sealed(folder / name)).hexdigest() != sha256:
            raise damaged(folder / name)


def read_sealed(path: Path) -> bytes:
    """A file's bytes. Raises `UserError` if there is none."""
    try:
        return path.read_bytes()
    except OSError:
        raise damaged(path) from None


def damaged(path: Path) -> UserError:
    """What people are told of a file that is not what was exported."""
    return user_error("path", path, "the file as it was exported, unchanged", "Download or copy it again.")


def save_pretrained(self: Any, *args: Any, **options: Any) -> None:
    """Always a `UserError`: the folder that this was loaded from is the ensemble, whole."""
    remedy = "Copy the folder that it was loaded from, or load it by ebdiff-orchestrator's load_ensemble, which saves."
    raise user_error("save_pretrained", type(self).__name__, "no saving by an exported ensemble", remedy)
