"""What differs between two experiments, in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from schemas.plan import Plan

STEPS = re.compile(r"(training|regions\.\d+)\.steps: ")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The fields in which two experiments differ, a line each: `field: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for index, (a, b) in pairs for line in differences(a, b, f"{path}.{index}")]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def refusal(path: Path, old: Plan, new: Plan) -> str:
    """For people: the run in `path` is of another experiment, and in what."""
    changed = differences(old.experiment(), new.experiment())
    lines = "\n".join(f"  - {line}" for line in changed)
    lines += _extend_hint(path, changed)
    return (
        f"DIR = {path}: holds a run of a different experiment; expected one of this plan. "
        f"What differs (there -> asked for):\n{lines}\n"
        f"Give another --run-dir for the new experiment, or go on with the old one: ebdiff resume {path}"
    )


def _extend_hint(path: Path, changed: list[str]) -> str:
    """How to train further, where that is all that differs."""
    steps = [re.fullmatch(r"(\S+): (\d+|None) -> (\d+)", line) for line in changed]
    known = [found for found in steps if found and STEPS.match(found[0])]
    if len(known) < len(changed) or any(int(found[3]) <= int(found[2].replace("None", "0")) for found in known):
        return ""
    sets = " ".join(f"--set {found[1]}={found[3]}" for found in known)
    return f"\nTo train its experts further: ebdiff extend {path} {sets}"
