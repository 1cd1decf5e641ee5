"""The presets: plans of the paper's jobs, the methods that each can be run with (`cifar10-eb`), and studies of them."""

from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml


def presets() -> dict[str, str]:
    """The name of every preset, and the first comment line of its file."""
    return _described(_folder())


def methods() -> dict[str, str]:
    """The name of every method, and the first comment line of its file; they follow a preset's name after a hyphen."""
    return _described(_folder() / "methods")


def studies() -> dict[str, str]:
    """The name of every study that comes with the package, and the first comment line of its file."""
    return _described(study_folder())


def study_folder() -> Traversable:
    return resources.files("ebdiff_orchestrator.plans") / "studies"


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with `changes` over them: sections are merged, lists and single values replaced."""
    sections = [key for key in changes if isinstance(values.get(key), dict) and isinstance(changes[key], dict)]
    return {**values, **changes, **{key: merged(values[key], changes[key]) for key in sections}}


def preset_values(name: str) -> dict[str, Any] | None:
    """Of a preset, its `methods` with them, or of one with methods (`cifar10-eb-speed`); None if there is none.

    A method's own file comes first, then what the preset says of that method under `methods`.
    """
    if name in presets():
        return _read(_folder() / f"{name}.yaml")
    for method in sorted(methods(), key=len, reverse=True):
        values = preset_values(name.removesuffix(f"-{method}")) if name.endswith(f"-{method}") else None
        if values is not None:
            own = values.get("methods", {}).get(method, {})
            changes = merged(_read(_folder() / "methods" / f"{method}.yaml"), own)
            return merged(merged(values, changes), {"name": name})
    return None


def _read(file: Traversable) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(file.read_text())
    return values


def _described(folder: Traversable) -> dict[str, str]:
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text().splitlines()[0].lstrip("# ") for file in files}


def _folder() -> Traversable:
    return resources.files("ebdiff_orchestrator.plans") / "presets"
