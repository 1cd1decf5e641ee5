"""`ebdiff compare`: the paper's table of methods, from the manifests of runs; nothing is estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebdiff_orchestrator.plans.preview import look_ahead
from ebdiff_orchestrator.reports.measures import Hours, Measures, measures_of
from ebdiff_orchestrator.reports.method import is_dense, method_of
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.networks.costs import Costs
from schemas.errors import UserError
from schemas.manifest import Manifest


@dataclass(frozen=True)
class Row:
    """One run. None stands for what was not measured, or cannot be compared.

    `costs`: parameters and multiply-accumulates of one image, weighted by the timesteps that each region owns.
    `speed_up`: the paper's: the dense run's training seconds over this run's slowest region's, the dense start's added
    where there is one, the draw left out. `wall_speed_up`: by the clock, draws, waiting and the
    dense start's own run included.
    `hours_saved`: the share of the dense run's hours that this one does without (negative: it took more).
    """

    run: str
    method: str
    costs: Costs
    measures: Measures
    speed_up: float | None
    wall_speed_up: float | None
    hours_saved: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain numbers; seconds, bytes and hours."""
        found, evaluation = self.measures, self.measures.evaluation
        return {
            "run": self.run,
            "method": self.method,
            "params": self.costs.params,
            "macs": self.costs.macs,
            "macs_with_attention": self.costs.macs_with_attention,
            "fid": evaluation and evaluation.fid,
            "fid_images": evaluation and evaluation.num_images,
            "fid_sampling_steps": evaluation and evaluation.steps,
            "steps": found.steps and list(found.steps),
            "dense_start_steps": found.charged_steps,
            "train_s": found.train_s,
            "dense_start_s": found.charged_s,
            "speed_up": self.speed_up,
            "wall_s": found.wall_s,
            "wall_speed_up": self.wall_speed_up,
            "gpu_hours": found.hours.hours if found.hours and found.hours.on_gpus else None,
            "worker_hours": found.hours.hours if found.hours and not found.hours.on_gpus else None,
            "hours_saved": self.hours_saved,
            "draw_share": found.draw_share,
            "peak_memory_bytes": found.peak_memory_bytes,
            "reused_stages": list(found.reused),
        }


@dataclass(frozen=True)
class Comparison:
    """The rows in the order asked for, and the dense run that they are measured against, if there is one."""

    rows: tuple[Row, ...]
    against: str | None


def compare_runs(runs: Sequence[Path], against: Path | None = None) -> Comparison:
    """The comparison of runs with a dense one: `against`, else the only dense one among them, else none.

    UserError for a folder without a run, or if `against` is no dense run.
    """
    manifests = [RunDirectory(run).read() for run in runs]
    if against is not None:
        dense = RunDirectory(against).read()
        if not is_dense(dense.plan):
            raise UserError(
                f"--against {against}: a run of {method_of(dense.plan)}; expected a dense run (one region with a "
                "pruning ratio of 0), since speed-ups are measured against one. Give such a run."
            )
        return _comparison(runs, manifests, against, dense)
    candidates = [(run, manifest) for run, manifest in zip(runs, manifests, strict=True) if is_dense(manifest.plan)]
    if len(candidates) == 1:
        return _comparison(runs, manifests, *candidates[0])
    return _comparison(runs, manifests, None, None)


def _comparison(
    runs: Sequence[Path], manifests: Sequence[Manifest], against: Path | None, dense: Manifest | None
) -> Comparison:
    rows = tuple(_row(run, manifest, dense) for run, manifest in zip(runs, manifests, strict=True))
    return Comparison(rows, str(against) if against else None)


def _row(run: Path, manifest: Manifest, dense: Manifest | None) -> Row:
    own = measures_of(manifest)
    reference = measures_of(dense) if dense else None
    return Row(
        run=str(run),
        method=method_of(manifest.plan),
        costs=look_ahead(manifest.plan, manifest.dense).weighted,
        measures=own,
        speed_up=_ratio(_train_s(reference), _train_s(own)),
        wall_speed_up=_ratio(_wall_s(dense), _wall_s(manifest)),
        hours_saved=_saved(reference, own) if reference else None,
    )


def _train_s(found: Measures | None) -> float | None:
    """The slowest region's training, and the dense training it starts from."""
    if found is None or found.train_s is None or found.charged_s is None:
        return None
    return found.train_s + found.charged_s


def _wall_s(manifest: Manifest | None) -> float | None:
    """By the clock, that of the dense start's own run included; None where that run is not at hand."""
    if manifest is None:
        return None
    own = measures_of(manifest).wall_s
    if own is None or manifest.dense is None:
        return own
    start = RunDirectory(Path(manifest.dense.path))
    before = _wall_s(start.read()) if start.exists() else None
    return None if before is None else before + own


def _ratio(dense: float | None, own: float | None) -> float | None:
    return dense / own if dense is not None and own else None


def _saved(dense: Measures, own: Measures) -> float | None:
    theirs, ours = _all_hours(dense), _all_hours(own)
    if theirs is None or ours is None or theirs.on_gpus != ours.on_gpus or not theirs.hours:
        return None
    return 1 - ours.hours / theirs.hours


def _all_hours(found: Measures) -> Hours | None:
    """The run's own hours and those of its dense start, if both are known and of one kind."""
    own, charged = found.hours, found.charged_hours
    if own is None or charged is None or own.on_gpus != charged.on_gpus:
        return None
    return Hours(own.hours + charged.hours, own.on_gpus)
