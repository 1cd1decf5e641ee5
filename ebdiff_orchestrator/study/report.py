"""A study's plot, and its page: table, quality against cost, samples, what is missing, its runs side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ebdiff_orchestrator.reports.compare import Comparison, compare_manifests, comparison_table
from ebdiff_orchestrator.reports.measures import is_dense
from ebdiff_orchestrator.reports.page import BYTES_OF_PICTURES, REPORT_FILE, check_out, write_page
from ebdiff_orchestrator.reports.page.curves import Point, Quality, draw_quality, quality_figure
from ebdiff_orchestrator.reports.page.pictures import Picture, samples_grid
from ebdiff_orchestrator.reports.page.svg import write_picture
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.study.results import StudyResults, results_table, study_results, unfinished
from schemas.errors import UserError, command, user_error

_MOST_LETTERS = 3000  # of why a run failed
_DEVICE_HOURS = "device-hours"
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
        say(f"No report: {str(error).rstrip('.')}. `{command('report', folder)}` tries again.")


def check_plot(file: Path) -> None:
    """UserError unless the file can be a picture's."""
    if file.suffix not in (".svg", ".png"):
        raise user_error("--plot", file, "a name that ends in .svg or .png", "Change it.")
    if not file.absolute().parent.is_dir():
        raise user_error("--plot", file, "a file in a folder that is there", "Make the folder, or change it.")


def plot_results(results: StudyResults, file: Path) -> None:
    """The paper's figure 1 with error bars: a panel a measure, a point a row. UserError if nothing is measured yet."""
    if not results.measures:
        raise UserError("--plot: expected at least one measured run in the study. Let it run for longer.")
    panels = [_quality_of(results, measure) for measure in results.measures]
    title = f"{results.name}: mean and standard deviation over seeds"
    columns = [[partial(draw_quality, quality=panel)] for panel in panels]
    write_picture(file, columns, title, max(panel.inches for panel in panels))


def _quality_of(results: StudyResults, measure: str, cost: str = _DEVICE_HOURS) -> Quality:
    """A measure of the rows against their device-hours or `dense steps`."""
    points: list[Point | None] = []
    for row in results.rows:
        took, value = row.device_hours if cost == _DEVICE_HOURS else row.dense_steps, row.values.get(measure)
        if took is None or value is None:
            points.append(None)
        else:
            points.append(Point(row.label, took.mean, value.mean, took.deviation, value.deviation))
    return Quality(measure, measure in results.higher_is_better, f"{cost}, draws included", points)


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
    found = [_quality_of(results, measure, cost) for cost in (_DEVICE_HOURS, "dense steps")]
    return [quality_figure(quality, numbers) for quality in found if any(quality.points)]


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
