"""The name of a plan's method, as the paper's tables have it."""

from __future__ import annotations

from schemas.plan import Plan

_IMPORTANCES = {"magnitude": "magnitude", "taylor": "Taylor", "diff-pruning": "Diff-Pruning", "random": "random"}
_WEIGHTINGS = {"min-snr": "Min-SNR", "p2": "P2"}


def method_of(plan: Plan) -> str:
    """The method and its ratio, such as `EB magnitude 50%` or `TA-EB 30/60/80% (magnitude) + SpeeD`.

    A plan of one region is a dense, scratch, finetune or EB row; several regions are timestep-aware (TA).
    """
    name = _dense(plan) or (_one_region(plan) if len(plan.regions) == 1 else _several_regions(plan))
    return " + ".join([name, *_timestep_law(plan)])


def is_dense(plan: Plan) -> bool:
    """Whether the plan trains one network without pruning: what speed-ups are measured against."""
    return len(plan.regions) == 1 and plan.regions[0].pruning_ratio == 0


def _dense(plan: Plan) -> str | None:
    if any(region.pruning_ratio for region in plan.regions):
        return None
    start = "" if plan.model.pretrained is None else " (continued)"
    return f"Dense{start}" if len(plan.regions) == 1 else f"Dense, {len(plan.regions)} regions{start}"


def _one_region(plan: Plan) -> str:
    ratio, importance = f"{plan.regions[0].pruning_ratio:.0%}", _IMPORTANCES[plan.draw.importance]
    if plan.draw.method == "one-shot":
        if not plan.draw.inherit_weights:
            return f"Scratch {ratio}"
        return f"{importance[0].upper()}{importance[1:]} finetune {ratio}"
    iteration_wise = "Iter-wise " if plan.draw.interval_steps == 1 else ""
    return f"{iteration_wise}EB {importance} {ratio}{_start(plan)}"


def _several_regions(plan: Plan) -> str:
    ratios = "/".join(f"{region.pruning_ratio * 100:g}" for region in plan.regions) + "%"
    details = [_IMPORTANCES[plan.draw.importance]]
    if plan.draw.scope == "shared":
        details.append("shared draw")
    if plan.draw.method == "one-shot":
        kind = "TA finetune" if plan.draw.inherit_weights else "TA scratch"
        return f"{kind} {ratios} ({', '.join(details)})"
    iteration_wise = "Iter-wise " if plan.draw.interval_steps == 1 else ""
    return f"{iteration_wise}TA-EB {ratios} ({', '.join(details)}){_start(plan)}"


def _start(plan: Plan) -> str:
    """What an early-bird method usually does not do."""
    parts = [] if plan.draw.inherit_weights else ["fresh weights"]
    parts += [] if plan.model.pretrained is None else ["from a dense start"]
    return f" ({', '.join(parts)})" if parts else ""


def _timestep_law(plan: Plan) -> list[str]:
    law = plan.training.timesteps
    sampling, weighting = law.sampling == "speed", law.weighting == "speed"
    speed = {
        (True, True): ["SpeeD"],
        (True, False): ["SpeeD sampling"],
        (False, True): ["SpeeD weighting"],
    }.get((sampling, weighting), [])
    return speed + ([_WEIGHTINGS[law.weighting]] if law.weighting in _WEIGHTINGS else [])
