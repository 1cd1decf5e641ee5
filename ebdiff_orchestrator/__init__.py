"""Train a diffusion model as a few small timestep experts, side by side, and load them as one diffusers pipeline.

`Plan`, `launch`, `resume`, `extend`, `evaluate` and `load_ensemble` are all that a program needs. Importing this
package, and loading an ensemble, imports neither ray nor the driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ebdiff_orchestrator.own_packages import shadowing

if TYPE_CHECKING:
    from ebdiff_orchestrator.ensemble.pipeline import load_ensemble
    from ebdiff_orchestrator.evaluation.evaluate import evaluate
    from ebdiff_orchestrator.run.launch import extend, launch, resume
    from schemas.plan import Plan

__all__ = ["Plan", "evaluate", "extend", "launch", "load_ensemble", "resume"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what is asked for when it first is: the command line's help needs none of it."""
    if name in __all__ and (told := shadowing()) is not None:
        raise ImportError(told)
    if name == "Plan":
        from schemas.plan import Plan

        return Plan
    if name in ("extend", "launch", "resume"):
        from ebdiff_orchestrator.run import launch as driver

        return getattr(driver, name)
    if name == "evaluate":
        from ebdiff_orchestrator.evaluation.evaluate import evaluate

        return evaluate
    if name == "load_ensemble":
        from ebdiff_orchestrator.ensemble.pipeline import load_ensemble

        return load_ensemble
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
