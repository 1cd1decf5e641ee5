"""How `ebdiff compare` shows its rows: labelled texts, and the footnotes that explain the labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ebdiff_orchestrator.reports.compare import Comparison, Row
from ebdiff_orchestrator.reports.formats import MISSING, TextTable
from schemas.manifest import Evaluation


def comparison_table(comparison: Comparison) -> TextTable:
    """The table for people: a dash where nothing was measured, footnotes for what a label means."""
    hours = _hours_heading(comparison)
    headings = (
        "method", "params M", "MACs G", "+ attention G", "FID", "steps", "speed-up", "wall-clock", "wall speed-up",
        hours, "saved", "draw", "memory GiB",
    )  # fmt: skip
    names = _names(comparison.rows)
    cells = tuple((name, *_cells(row)) for name, row in zip(names, comparison.rows, strict=True))
    return TextTable(headings, cells, _footnotes(comparison))


def _names(rows: Sequence[Row]) -> list[str]:
    """Each row's method, with its run where several have the same."""
    methods = [row.method for row in rows]
    return [row.method if methods.count(row.method) == 1 else f"{row.method} [{Path(row.run).name}]" for row in rows]


def _cells(row: Row) -> tuple[str, ...]:
    found = row.measures
    return (
        f"{row.costs.params / 1e6:.2f}",
        f"{row.costs.macs / 1e9:.3f}",
        f"{row.costs.macs_with_attention / 1e9:.3f}",
        _fid(found.evaluation),
        _steps(row),
        _number(row.speed_up, "{:.2f}x"),
        _duration(found.wall_s),
        _number(row.wall_speed_up, "{:.2f}x"),
        _hours(row),
        _number(row.hours_saved, "{:.0%}"),
        _number(found.draw_share, "{:.1%}"),
        _number(None if found.peak_memory_bytes is None else found.peak_memory_bytes / 2**30, "{:.2f}"),
    )


def _footnotes(comparison: Comparison) -> tuple[str, ...]:
    rows = comparison.rows
    notes = [
        "params, MACs: of one image, weighted by the timesteps that each region owns. MACs are torch-pruning's count, "
        "the paper's; + attention: with the attention's matrix products."
    ]
    notes.append(_speed_up_note(comparison))
    notes.append("wall-clock: of all launches together, waiting included; the time between launches is not.")
    notes.append("draw: the draws' share of all seconds of work. -: not measured.")
    if any(row.measures.charged_steps != 0 for row in rows):
        notes.append(
            "Runs that start from a dense network are charged its training in speed-ups and savings (steps in "
            "brackets); ?: what it took is not known."
        )
    if any(row.measures.evaluation and not row.measures.evaluation.is_full for row in rows):
        notes.append("FID (n): from n images; fewer than 50,000 give a higher number, not to be compared with FID-50K.")
    if len({row.measures.evaluation.reference_digest for row in rows if row.measures.evaluation}) > 1:
        notes.append("The FIDs are measured against different reference images.")
    notes += [
        f"{name}: {', '.join(row.measures.reused)} taken over from another run; counted in the speed-up with "
        "what they took there, not in the hours and the wall-clock."
        for name, row in zip(_names(rows), rows, strict=True)
        if row.measures.reused
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
    kinds = {row.measures.hours.on_gpus for row in comparison.rows if row.measures.hours}
    return {frozenset({True}): "GPU-hours", frozenset({False}): "worker-hours"}.get(frozenset(kinds), "hours")


def _hours(row: Row) -> str:
    return MISSING if row.measures.hours is None else f"{row.measures.hours.hours:.3g}"


def _fid(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return MISSING
    return f"{evaluation.fid:.2f}" + ("" if evaluation.is_full else f" ({_thousands(evaluation.num_images)})")


def _thousands(count: int) -> str:
    return f"{count / 1000:g}k" if count >= 1000 else str(count)


def _steps(row: Row) -> str:
    found = row.measures
    if found.steps is None:
        return MISSING
    own = str(found.steps[0]) if len(set(found.steps)) == 1 else "/".join(map(str, found.steps))
    charged = "?" if found.charged_steps is None else str(found.charged_steps)
    return own if charged == "0" else f"{own} (+{charged})"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _number(value: float | None, text: str) -> str:
    return MISSING if value is None else text.format(value)
