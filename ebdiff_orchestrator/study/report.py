"""A study's page: its table, quality against cost, samples of each row, what is missing, and its runs side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ebdiff_orchestrator.reports.compare import Comparison, compare_manifests, comparison_table
from ebdiff_orchestrator.reports.measures import is_dense
from ebdiff_orchestrator.reports.page import BYTES_OF_PICTURES, REPORT_FILE, check_out, write_page
from ebdiff_orchestrator.reports.page.curves import Point, quality_figure
from ebdiff_orchestrator.reports.page.pictures import Picture, samples_grid
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.study.results import RowResult, StudyResults, study_results
from ebdiff_orchestrator.study.table import results_table, unfinished
from schemas.errors import command

_MOST_LETTERS = 3000  # of why a run failed
_GRID_PX = 400  # twice as wide as it is shown, for screens that have as many pixels


def write_study_report(folder: str | Path, out: str | Path) -> Path:
    """Write the page on the study in `folder`, whatever there is of it by now, to `out`; its path.

    Nothing in the folder is locked or changed. UserError if `out` cannot be written.
    """
    check_out(out)
    folder = Path(folder)
    results = study_results(folder)
    comparison = _comparison(results, folder)
    table = None if comparison is None else comparison_table(comparison)
    return write_page(out, [], table, [], study=_contents(results, folder))


def leave_study_report(folder: Path, say: Callable[[str], None]) -> None:
    """Write the page into the study's folder, and say where; what goes wrong is said, and no more."""
    try:
        say(f"Report: {write_study_report(folder, folder / REPORT_FILE)}")
    except Exception as error:  # noqa: BLE001 - a report's failure is none of the study's
        say(f"No report: {error}. `{command('report', folder)}` tries again.")


def _contents(results: StudyResults, folder: Path) -> dict[str, Any]:
    """What study.html.j2 shows; the figures of `quality`, by measure, are SVG elements, all else is to be escaped."""
    numbers = itertools.count(1)
    missing = list(unfinished(results, _MOST_LETTERS))
    return {
        "name": results.name,
        "location": RunDirectory(folder).short_location,
        "state": _state(results),
        "table": results_table(results, with_unfinished=False),
        "quality": {measure: _figures(results, measure, numbers) for measure in results.measures},
        "grids": _grids(results, folder),
        "failures": [(runs, reason) for runs, reason, has_failed in missing if has_failed],
        "others": [(runs, reason) for runs, reason, has_failed in missing if not has_failed],
    }


def _state(results: StudyResults) -> str:
    runs = [run for row in results.rows for run in row.runs]
    finished, failed = sum(run.is_finished for run in runs), sum(run.has_failed for run in runs)
    return f"{finished} of {len(runs)} runs are finished" + (f", {failed} failed" if failed else "")


def _figures(results: StudyResults, measure: str, numbers: itertools.count[int]) -> list[str]:
    """A measure against device-hours, and against dense steps; a point a row."""
    figures = []
    for cost in ("device-hours", "dense steps"):
        points = [_point(row, measure, cost) for row in results.rows]  # a row looks the same in all figures
        if any(points):
            higher = measure in results.higher_is_better
            figures.append(quality_figure(measure, higher, points, f"{cost}, draws included", numbers))
    return figures


def _point(row: RowResult, measure: str, cost: str) -> Point | None:
    took = row.device_hours if cost == "device-hours" else row.dense_steps
    quality = row.values.get(measure)
    if took is None or quality is None:
        return None
    return Point(row.label, took.mean, quality.mean, took.deviation, quality.deviation)


def _grids(results: StudyResults, folder: Path) -> list[Picture]:
    """Of each row the samples of the first seed that has some."""
    found = []
    for row in results.rows:
        for run in row.runs:
            directory, caption = RunDirectory(folder / run.name), f"{row.label}, seed {run.seed}"
            if directory.exists() and directory.read().finished():
                picture = samples_grid(directory, BYTES_OF_PICTURES // len(results.rows), _GRID_PX, caption)
                if picture is not None:
                    found.append(picture)
                    break
    return found


def _comparison(results: StudyResults, folder: Path) -> Comparison | None:
    """Of all runs that have begun, with the first finished dense one; None before any has."""
    runs = [folder / run.name for row in results.rows for run in row.runs]
    begun = {run: RunDirectory(run).read() for run in runs if RunDirectory(run).exists()}
    dense = (run for run, manifest in begun.items() if is_dense(manifest.plan) and manifest.finished())
    return compare_manifests(list(begun.items()), next(dense, None)) if begun else None
