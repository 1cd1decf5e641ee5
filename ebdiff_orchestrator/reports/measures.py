"""What a run's method is called, what the run took and what came of it; None for what was not measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ebdiff_orchestrator.reports.distances import Values, best_values
from schemas.job import WEIGHTS_FILE
from schemas.manifest import DenseCost, DenseSource, DeviceUsage, Manifest, StageRecord
from schemas.plan import Plan

_IMPORTANCES = {"magnitude": "magnitude", "taylor": "Taylor", "diff-pruning": "Diff-Pruning", "random": "random"}
_SPARSE = {"static": "Static-DM", "rigl": "RigL-DM", "magran": "MagRan-DM"}
_WEIGHTINGS = {"min-snr": "Min-SNR", "p2": "P2"}


@dataclass(frozen=True)
class Hours:
    """What was held, and for how long: GPU-hours, or worker-hours on CPUs."""

    hours: float
    on_gpus: bool

    @property
    def unit(self) -> str:
        """What they are called."""
        return "GPU-hours" if self.on_gpus else "worker-hours"

    @classmethod
    def of(cls, held: Sequence[DeviceUsage | DenseCost]) -> Self | None:
        """All together; None for nothing."""
        gpus, workers = sum(each.gpu_hours for each in held), sum(each.worker_hours for each in held)
        return cls(gpus or workers, gpus > 0) if gpus or workers else None


@dataclass(frozen=True)
class Measures:
    """The measures of one run. Seconds are of work (`train_s`, `draw_s`) or of the clock (`wall_s`).

    `train_s`: the slowest region's training. `draw_share`: draws' part of all work. `dense_start_s`: the dense training
    that the run starts from, 0 where it starts fresh, None where that is unknown. `all_hours`: with those of the start.
    `stored_bytes`: the files of all experts' weights.
    """

    steps: tuple[int, ...] | None
    train_s: float | None
    draw_share: float | None
    wall_s: float | None
    hours: Hours | None
    all_hours: Hours | None
    dense_start_s: float | None
    dense_start_steps: int | None
    peak_memory_bytes: int | None
    stored_bytes: int | None
    values: Values
    reused_stages: tuple[str, ...]
    on_cpu: bool


def measures_of(manifest: Manifest) -> Measures:
    """The measures that the manifest holds; a measure over several stages needs all of them done."""
    draws, trainings = manifest.draws(), manifest.trainings()
    worked = [*draws, *trainings]
    trained = all(record.status == "done" for record in trainings)
    drawn = all(record.status == "done" for record in draws)
    cost = manifest.start_cost()
    hours = Hours.of(manifest.training_usage())
    return Measures(
        steps=tuple(record.steps for record in trainings) if trained else None,
        train_s=max(record.active_s for record in trainings) if trained else None,
        draw_share=_seconds(draws) / all_s if trained and drawn and (all_s := _seconds(worked)) else None,
        wall_s=wall_s(manifest),
        hours=hours,
        all_hours=_with_start(hours, manifest.dense),
        dense_start_s=None if cost is None else cost.active_s,
        dense_start_steps=None if cost is None else cost.steps,
        peak_memory_bytes=max((r.peak_memory_bytes for r in worked if r.peak_memory_bytes is not None), default=None),
        stored_bytes=_stored_bytes(trainings) if trained else None,
        values=best_values(manifest),
        reused_stages=tuple(record.name for record in worked if record.reused_from),
        on_cpu=any(record.hardware is not None and record.hardware.device == "cpu" for record in worked),
    )


def _stored_bytes(trainings: Sequence[StageRecord]) -> int | None:
    files = [item.size_bytes for record in trainings for item in record.artifacts if item.path.endswith(WEIGHTS_FILE)]
    return sum(files) if len(files) == len(trainings) else None


def _seconds(stages: Sequence[StageRecord]) -> float:
    return sum(record.active_s for record in stages)


def wall_s(manifest: Manifest) -> float | None:
    """All launches together, waiting included; not the time between them."""
    lasted = [launch.ended_at - launch.started_at for launch in manifest.launches]
    return sum(lasted) if manifest.finished() and lasted else None


def _with_start(own: Hours | None, start: DenseSource | None) -> Hours | None:
    """The run's own hours and those of its dense start, if both are known and of one kind."""
    if own is None or start is None:
        return own
    before = Hours.of([start.cost]) if start.cost else None
    return Hours(own.hours + before.hours, own.on_gpus) if before and before.on_gpus == own.on_gpus else None


def method_of(plan: Plan) -> str:
    """The method and its ratio, such as `EB magnitude 50%` or `TA-EB 30/60/80% (magnitude) + SpeeD`.

    A plan of one region is a dense, scratch, finetune or EB row; several regions are timestep-aware (TA).
    """
    name = _dense(plan) or (_one_region(plan) if len(plan.regions) == 1 else _several_regions(plan))
    sparse = _sparsity(plan)
    if sparse and not any(region.pruning_ratio for region in plan.regions):
        name, sparse = ("" if len(plan.regions) == 1 else "TA ") + sparse[0], []
    return " + ".join([name, *sparse, *_timesteps(plan)])


def is_dense(plan: Plan) -> bool:
    """Whether the plan trains one network without pruning or masking: what speed-ups are measured against."""
    return len(plan.regions) == 1 and plan.regions[0].pruning_ratio == 0 and plan.sparsity is None


def _dense(plan: Plan) -> str | None:
    if any(region.pruning_ratio for region in plan.regions):
        return None
    start = "" if plan.model.pretrained is None else " (continued)"
    return f"Dense{start}" if len(plan.regions) == 1 else f"Dense, {len(plan.regions)} regions{start}"


def _one_region(plan: Plan) -> str:
    ratio, importance = f"{plan.regions[0].pruning_ratio:.0%}", _IMPORTANCES[plan.draw.importance]
    if plan.draw.method == "slim":
        return f"Slim {ratio}"
    if plan.draw.method == "one-shot":
        if not plan.draw.inherit_weights:
            return f"Scratch {ratio}"
        return f"{importance[0].upper()}{importance[1:]} finetune {ratio}"
    iteration_wise = "Iter-wise " if plan.draw.interval_steps == 1 else ""
    return f"{iteration_wise}EB {importance} {ratio}{_start(plan)}"


def _several_regions(plan: Plan) -> str:
    ratios = "/".join(f"{region.pruning_ratio * 100:g}" for region in plan.regions) + "%"
    if plan.draw.method == "slim":
        return f"TA slim {ratios}"
    details = [_IMPORTANCES[plan.draw.importance]]
    if plan.draw.scope == "shared":
        details.append("shared draw")
    if plan.draw.method == "one-shot":
        kind = "TA finetune" if plan.draw.inherit_weights else "TA scratch"
        return f"{kind} {ratios} ({', '.join(details)})"
    iteration_wise = "Iter-wise " if plan.draw.interval_steps == 1 else ""
    return f"{iteration_wise}TA-EB {ratios} ({', '.join(details)}){_start(plan)}"


def _start(plan: Plan) -> str:
    """What is unusual about how an early-bird method starts."""
    parts = [] if plan.draw.inherit_weights else ["fresh weights"]
    parts += [] if plan.model.pretrained is None else ["from a dense start"]
    return f" ({', '.join(parts)})" if parts else ""


def _sparsity(plan: Plan) -> list[str]:
    """Such as `RigL-DM 50%`, by region if they differ."""
    if plan.sparsity is None:
        return []
    shares = [f"{sparsity.sparsity * 100:g}" for region in plan.regions if (sparsity := plan.sparsity_of(region))]
    text = "/".join(shares if len(set(shares)) > 1 else shares[:1])
    return [f"{_SPARSE[plan.sparsity.method]} {text}%"]


def _timesteps(plan: Plan) -> list[str]:
    """How timesteps are drawn and weighted, if not evenly."""
    given = plan.training.timesteps
    speed = [kind for kind in ("sampling", "weighting") if getattr(given, kind) == "speed"]
    names = ["SpeeD"] if len(speed) == 2 else [f"SpeeD {kind}" for kind in speed]
    return names + ([_WEIGHTINGS[given.weighting]] if given.weighting in _WEIGHTINGS else [])
