"""`ebdiff compare`: the paper's table of methods, from the manifests of runs; nothing is estimated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebdiff_orchestrator.plans.preview import preview_of
from ebdiff_orchestrator.reports.distances import distance_cells, distance_fields, distance_notes, measured_fields
from ebdiff_orchestrator.reports.formats import MISSING, TextTable, gib, number
from ebdiff_orchestrator.reports.measures import Hours, Measures, is_dense, measures_of, method_of, wall_s
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.time_left import duration
from schemas.errors import UserError
from schemas.manifest import POINTS_COUNTED, Costs, Manifest, SparseCosts


@dataclass(frozen=True)
class Row:
    """One run. None stands for what was not measured, or cannot be compared.

    `costs`: parameters and multiply-accumulates of one image, weighted by the timesteps that each region owns; `sparse`
    the same of sparse networks, in theory.
    `speed_up`: the paper's: the dense run's training seconds over this run's slowest region's, the dense start's added
    where there is one, the draw left out. `wall_speed_up`: by the clock, draws, waiting and the
    dense start's own run included.
    `hours_saved`: the share of the dense run's hours that this one does without (negative: it took more).
    """

    run: str
    data: str
    method: str
    costs: Costs
    sparse: SparseCosts | None
    measures: Measures
    speed_up: float | None
    wall_speed_up: float | None
    hours_saved: float | None
    of_drawings: bool = False

    def as_json(self) -> dict[str, Any]:
        found, hours = self.measures, self.measures.hours
        return {
            "run": self.run,
            "method": self.method,
            **self.costs.model_dump(),
            "kept_params": self.sparse and self.sparse.kept_params,
            "theoretical_forward_macs": self.sparse and self.sparse.forward_macs,
            "theoretical_step_macs": self.sparse and self.sparse.step_macs,
            "stored_bytes": found.stored_bytes,
            **distance_fields(found.values, "FID", "fid"),
            **distance_fields(found.values, "FD-random-conv", "fd_random_conv"),
            "measured": measured_fields(found.values),
            "steps": found.steps,
            "dense_start_steps": found.dense_start_steps,
            "train_s": found.train_s,
            "dense_start_s": found.dense_start_s,
            "speed_up": self.speed_up,
            "wall_s": found.wall_s,
            "wall_speed_up": self.wall_speed_up,
            "gpu_hours": hours.hours if hours and hours.on_gpus else None,
            "worker_hours": hours.hours if hours and not hours.on_gpus else None,
            "hours_saved": self.hours_saved,
            "draw_share": found.draw_share,
            "peak_memory_bytes": found.peak_memory_bytes,
            "reused_stages": found.reused_stages,
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
    return compare_manifests([(run, RunDirectory(run).read()) for run in runs], against)


def compare_manifests(runs: Sequence[tuple[Path, Manifest]], against: Path | None = None) -> Comparison:
    """The same of runs whose manifests have been read."""
    candidates = [(run, manifest) for run, manifest in runs if is_dense(manifest.plan)]
    dense = None
    if against is not None:
        dense = RunDirectory(against).read()
        if not is_dense(dense.plan):
            raise UserError(
                f"--against {against}: a run of {method_of(dense.plan)}; expected a dense run (one region with a "
                "pruning ratio of 0), since speed-ups are measured against one. Give such a run."
            )
    elif len(candidates) == 1:
        against, dense = candidates[0]
    rows = tuple(_row(run, manifest, dense) for run, manifest in runs)
    return Comparison(rows, str(against) if against else None)


def _row(run: Path, manifest: Manifest, dense: Manifest | None) -> Row:
    own = measures_of(manifest)
    reference = measures_of(dense) if dense else None
    preview = preview_of(manifest)
    return Row(
        run=str(run),
        data=manifest.plan.data.path,
        method=method_of(manifest.plan),
        costs=preview.weighted,
        sparse=preview.weighted_sparse,
        measures=own,
        speed_up=_ratio(_train_s(reference), _train_s(own)),
        wall_speed_up=_ratio(_wall_with_start_s(dense), _wall_with_start_s(manifest)),
        hours_saved=_saved(reference.all_hours, own.all_hours) if reference else None,
        of_drawings=manifest.plan.data.drawings is not None,
    )


def _train_s(found: Measures | None) -> float | None:
    """The slowest region's training, and the dense training it starts from."""
    if found is None or found.train_s is None or found.dense_start_s is None:
        return None
    return found.train_s + found.dense_start_s


def _wall_with_start_s(manifest: Manifest | None) -> float | None:
    """Seconds by the clock, including the run of the dense start; None where that run is not at hand."""
    if manifest is None:
        return None
    own = wall_s(manifest)
    if own is None or manifest.dense is None:
        return own
    place = RunDirectory(Path(manifest.dense.path))
    start = place.read() if place.exists() else None
    if start is None or start.created_at >= manifest.created_at:  # another run is there now, perhaps this very one
        return None
    before = _wall_with_start_s(start)
    return None if before is None else before + own


def _ratio(dense: float | None, own: float | None) -> float | None:
    return dense / own if dense is not None and own else None


def _saved(dense: Hours | None, own: Hours | None) -> float | None:
    if dense is None or own is None or dense.on_gpus != own.on_gpus or not dense.hours:
        return None
    return 1 - own.hours / dense.hours


def comparison_table(comparison: Comparison) -> TextTable:
    """The table for people: a dash where nothing was measured, footnotes for what a label means."""
    hours = _hours_heading(comparison)
    names, any_sparse = _names(comparison.rows), any(row.sparse for row in comparison.rows)
    quality = distance_cells([row.measures.values for row in comparison.rows])
    rows = [
        {"method": name, **_sizes(row, any_sparse), **distances, **_cells(row, hours)}
        for name, row, distances in zip(names, comparison.rows, quality, strict=True)
    ]
    return TextTable(
        tuple(rows[0]),
        tuple(tuple(row.values()) for row in rows),
        _footnotes(comparison),
        most_wanted=(*quality[0], "MACs G", "speed-up", hours, "params M", "wall-clock", "saved"),
        whole_with="--format markdown, csv or json",
    )


def _names(rows: Sequence[Row]) -> list[str]:
    """Each row's method, with its run where several have the same, or other data."""
    methods, is_of_one = [row.method for row in rows], len({row.data for row in rows}) == 1
    return [
        row.method if is_of_one and methods.count(row.method) == 1 else f"{row.method} [{Path(row.run).name}]"
        for row in rows
    ]


def _sizes(row: Row, with_sparse: bool) -> dict[str, str]:
    """By heading; the theoretical ones only where a run is sparse."""
    costs, sparse, stored_bytes = row.costs, row.sparse, row.measures.stored_bytes
    cells = {
        "params M": f"{costs.params / 1e6:.2f}",
        "MACs G": f"{costs.macs / 1e9:.3f}",
        "+ attention G": f"{costs.macs_with_attention / 1e9:.3f}",
    }
    if with_sparse:
        cells["kept M"] = f"{sparse.kept_params / 1e6:.2f}" if sparse else MISSING
        cells["theoretical G"] = f"{sparse.forward_macs / 1e9:.3f}" if sparse else MISSING
        cells["theoretical step G"] = f"{sparse.step_macs / 1e9:.3f}" if sparse else MISSING
        cells["stored MB"] = MISSING if stored_bytes is None else f"{stored_bytes / 1e6:.2f}"
    return cells


def _cells(row: Row, hours: str) -> dict[str, str]:
    found = row.measures
    return {
        "steps": _steps_cell(row),
        "speed-up": number(row.speed_up, "{:.2f}x"),
        "wall-clock": MISSING if found.wall_s is None else duration(int(found.wall_s)),
        "wall speed-up": number(row.wall_speed_up, "{:.2f}x"),
        hours: number(found.hours.hours if found.hours else None, "{:.3g}"),
        "saved": number(row.hours_saved, "{:.0%}"),
        "draw": number(found.draw_share, "{:.1%}"),
        "memory GiB": gib(found.peak_memory_bytes),
    }


def _footnotes(comparison: Comparison) -> tuple[str, ...]:
    rows = comparison.rows
    notes = [
        "params, MACs: of one image, weighted by the timesteps that each region owns. MACs are torch-pruning's count, "
        "the paper's; + attention: with the attention's matrix products."
    ]
    if any(row.of_drawings for row in rows):
        notes.append(f"MACs of drawings are those of one of {POINTS_COUNTED} points, whole in either column.")
    notes.append(_speed_up_note(comparison))
    notes.append("wall-clock: of all launches together, waiting included; the time between launches is not.")
    notes.append("draw: the draws' share of all seconds of work. -: not measured.")
    if any(row.sparse for row in rows):
        notes.append(
            "kept: parameters that are not masked. theoretical: MACs with the attention's products, of a forward pass "
            "and of a training step, if masked weights cost nothing; no device at hand skips them. "
            "stored: the files of all experts' weights."
        )
    if any(row.measures.dense_start_steps != 0 for row in rows):
        notes.append(
            "Runs that start from a dense network are charged its training in speed-ups and savings (steps in "
            "brackets); ?: what it took is not known."
        )
    notes += distance_notes([row.measures.values for row in rows])
    notes += [
        f"{name}: {', '.join(row.measures.reused_stages)} taken over from another run; counted in the speed-up with "
        "what they took there, not in the hours and the wall-clock."
        for name, row in zip(_names(rows), rows, strict=True)
        if row.measures.reused_stages
    ]
    if any(row.measures.on_cpu for row in rows):
        notes.append(
            "On CPUs: hours are workers times hours, memory is a worker's resident set, and where several regions "
            "trained at once their seconds include what they took from each other on shared cores."
        )
    return tuple(notes)


def _speed_up_note(comparison: Comparison) -> str:
    if comparison.against is None:
        return "speed-up, saved: need a dense run to compare with: --against RUN."
    return (
        f"speed-up: training seconds of {comparison.against} over those of the slowest region, draws left out (the "
        "paper's definition); wall speed-up: the same by the clock, with draws; saved: share of its hours."
    )


def _hours_heading(comparison: Comparison) -> str:
    units = {row.measures.hours.unit for row in comparison.rows if row.measures.hours}
    return units.pop() if len(units) == 1 else "hours"


def _steps_cell(row: Row) -> str:
    found = row.measures
    if found.steps is None:
        return MISSING
    own = str(found.steps[0]) if len(set(found.steps)) == 1 else "/".join(map(str, found.steps))
    charged = "?" if found.dense_start_steps is None else str(found.dense_start_steps)
    return own if charged == "0" else f"{own} (+{charged})"
