"""Train a diffusion model as a few small timestep experts, side by side, and load them as one diffusers pipeline.

`Plan`, `load_plan`, `launch`, `resume`, `extend`, `evaluate` and `load_ensemble` are all that a program
needs. Importing this package, and loading an ensemble, imports neither ray nor the driver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ebdiff_orchestrator.own_packages import shadowing

if TYPE_CHECKING:
    from ebdiff_orchestrator.ensemble.pipeline import load_ensemble
    from ebdiff_orchestrator.evaluation.evaluate import evaluate
    from ebdiff_orchestrator.plans.load import load_plan
    from ebdiff_orchestrator.run.launch import extend, launch, resume
    from schemas.plan import Plan

__all__ = ["Plan", "evaluate", "extend", "launch", "load_ensemble", "load_plan", "resume"]
__version__ = "0.1.0"


_PLACES = {
    "Plan": "schemas.plan",
    "evaluate": "ebdiff_orchestrator.evaluation.evaluate",
    "extend": "ebdiff_orchestrator.run.launch",
    "launch": "ebdiff_orchestrator.run.launch",
    "load_ensemble": "ebdiff_orchestrator.ensemble.pipeline",
    "load_plan": "ebdiff_orchestrator.plans.load",
    "resume": "ebdiff_orchestrator.run.launch",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it first is: the command line's help needs none of it."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if (told := shadowing()) is not None:
        raise ImportError(told)
    return getattr(import_module(_PLACES[name]), name)
