"""Whether our packages are the ones that Python finds: a folder `schemas` of a user's own may come first on its path.

`ray job submit --working-dir` and `python -m` put the current folder there. Asked before any of them is imported, so
that what is wrong is said, and not that something is missing in it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_BESIDE_US = ("region_workers", "schemas")
_HOME = Path(__file__).resolve().parents[1]


def shadowing() -> str | None:
    """For people: what stands in the place of a package of ours, and what to do; None: nothing does."""
    for name in _BESIDE_US:
        found = _place_of(name)
        if found is not None and found != _HOME / name:
            return (
                f"{found}: expected that no folder or file on Python's path has the name of our package {name}, "
                f"which is {_HOME / name}, but Python finds this one first. Rename it, or start from another folder "
                "(with another --working-dir)."
            )
    return None


def _place_of(package: str) -> Path | None:
    """The folder of a package, or the file of a module, that an import would take."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin).resolve()
    return origin.parent if origin.name == "__init__.py" else origin
