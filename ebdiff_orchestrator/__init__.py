"""Train a diffusion model as a few small timestep experts, side by side, and load them as one diffusers pipeline.

`Plan`, `load_plan`, `launch`, `resume`, `extend`, `evaluate` and `load_ensemble`, with `load_study` and `run_study` for
several plans at once, are all that a program needs. Importing this package, and loading an ensemble, imports neither
ray nor the driver.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebdiff_orchestrator.ensemble.loading import load_ensemble
    from ebdiff_orchestrator.evaluation.evaluate import evaluate
    from ebdiff_orchestrator.plans.load import load_plan
    from ebdiff_orchestrator.run.launch import extend, launch, resume
    from ebdiff_orchestrator.study.load import load_study
    from ebdiff_orchestrator.study.run_study import run_study
    from schemas.plan import Plan

__all__ = ["Plan", "evaluate", "extend", "launch", "load_ensemble", "load_plan", "load_study", "resume", "run_study"]
__version__ = "0.1.0"

_PLACES = {
    "Plan": "schemas.plan",
    "evaluate": "ebdiff_orchestrator.evaluation.evaluate",
    "extend": "ebdiff_orchestrator.run.launch",
    "launch": "ebdiff_orchestrator.run.launch",
    "load_ensemble": "ebdiff_orchestrator.ensemble.loading",
    "load_plan": "ebdiff_orchestrator.plans.load",
    "load_study": "ebdiff_orchestrator.study.load",
    "resume": "ebdiff_orchestrator.run.launch",
    "run_study": "ebdiff_orchestrator.study.run_study",
}
_BESIDE_US = ("region_workers", "schemas")
_HOME = Path(__file__).resolve().parents[1]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it first is: the command line's help needs none of it."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if (told := shadowing()) is not None:
        raise ImportError(told)
    from schemas.process import quick_imports

    with quick_imports():
        return getattr(import_module(_PLACES[name]), name)


def shadowing() -> str | None:
    """For people: what stands in the place of a package of ours, and what to do; None: nothing does.

    `ray job submit --working-dir` and `python -m` put the current folder first on Python's path, where a folder
    `schemas` of a user's own may be. Asked before any of them is imported, so that this is said, and not that something
    is missing in it.
    """
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
