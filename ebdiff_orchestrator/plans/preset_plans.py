"""The presets: plans of the paper's jobs, the methods that each can be run with (`cifar10-eb`), and studies of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from schemas.errors import plan_error

_PRESETS = Path(__file__).parent / "presets"


def presets() -> dict[str, str]:
    """The name of every preset, and the first comment line of its file."""
    return _described(_PRESETS)


def methods() -> dict[str, str]:
    """The name of every method, and the first comment line of its file; they follow a preset's name after a hyphen."""
    return _described(_PRESETS / "methods")


def studies() -> dict[str, str]:
    """The name of every study that comes with the package, and the first comment line of its file."""
    return _described(study_folder())


def study_folder() -> Path:
    return _PRESETS.parent / "studies"


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with `changes` over them: sections are merged, lists and single values replaced."""
    sections = [key for key in changes if isinstance(values.get(key), dict) and isinstance(changes[key], dict)]
    return {**values, **changes, **{key: merged(values[key], changes[key]) for key in sections}}


def preset_values(name: str) -> dict[str, Any] | None:
    """Of a preset, or of one with methods (`cifar10-eb-speed`), but for its section `methods`; None if there is none.

    A method's own file comes first, then what the preset says of that method under `methods`.

    Raises PlanError for methods of which one would overrule another, whichever comes first.
    """
    parts = _parts(name)
    if parts is None:
        return None
    preset, *joined = parts
    values = _read(_PRESETS / f"{preset}.yaml")
    own = values.pop("methods", {})
    set_by: dict[str, str] = {}
    for method in joined:
        changes = merged(_read(_PRESETS / "methods" / f"{method}.yaml"), own.get(method, {}))
        _check_join(name, method, changes, set_by)
        values = merged(values, changes)
    return merged(values, {"name": name})


def _parts(name: str) -> list[str] | None:
    """The preset and the methods that a name joins; None if it joins no such things."""
    if name in presets():
        return [name]
    for method in sorted(methods(), key=len, reverse=True):
        before = _parts(name.removesuffix(f"-{method}")) if name.endswith(f"-{method}") else None
        if before is not None:
            return [*before, method]
    return None


def _check_join(name: str, method: str, changes: dict[str, Any], set_by: dict[str, str]) -> None:
    """Note in `set_by` which fields the method sets; PlanError if one of them, or a part of it, is set already."""
    fields = list(_fields(changes))
    for field in fields:
        for other, by in set_by.items():
            if f"{field}.".startswith(f"{other}.") or f"{other}.".startswith(f"{field}."):
                expected = f"methods that change different things, but {by} and {method} both set {field}"
                raise plan_error("PLAN", name, expected, "Leave one of the two out.")
    set_by |= dict.fromkeys(fields, method)


def _fields(values: dict[str, Any], above: str = "") -> Iterator[str]:
    """The dotted names of all single values and lists."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def _read(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(file.read_text())
    return values


def _described(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*.yaml"), key=lambda file: file.name)
    return {file.stem: file.read_text().splitlines()[0].lstrip("# ") for file in files}
