"""`ebdiff report`: one HTML file, which needs nothing else, that tells of a run, or of several beside each other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ebdiff_orchestrator.reports.compare import compare_manifests, comparison_table
from ebdiff_orchestrator.reports.distances import measured_values
from ebdiff_orchestrator.reports.formats import TextTable, check_replaceable
from ebdiff_orchestrator.reports.measures import measures_of, method_of
from ebdiff_orchestrator.reports.page.contents import contents_of
from ebdiff_orchestrator.reports.page.curves import Point, Quality, legend_of_work, quality_figure
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.storage.durable import write_text
from schemas.errors import UserError, command
from schemas.manifest import Manifest

REPORT_FILE = "report.html"
BYTES_OF_PICTURES = 1_600_000  # of a page, shared by its runs; figures and tables take 40 to 100 kB a run


def write_report(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write the page on `runs` (folders or URLs) to `out`, in place of an older one; its path.

    UserError if one of them is no run, or `out` cannot be written.
    """
    check_out(out)
    numbers = itertools.count(1)
    read = [(run, run.read()) for run in map(RunDirectory, runs)]
    named = [(Path(run), manifest) for run, (_, manifest) in zip(runs, read, strict=True)]
    return write_page(
        out,
        runs=[contents_of(run, manifest, numbers, BYTES_OF_PICTURES // len(runs)) for run, manifest in read],
        comparison=comparison_table(compare_manifests(named)) if len(runs) > 1 else None,
        quality_figures=_quality_figures(named, numbers) if len(runs) > 1 else [],
    )


def check_out(out: str | Path) -> None:
    """UserError if no page can be written there."""
    if Path(out).is_dir() or not Path(out).parent.is_dir():
        raise UserError(f"--out {out}: expected a file in a folder that there is. Change it.")
    check_replaceable("--out", Path(out), ".html")


def write_page(
    out: str | Path,
    runs: Sequence[dict[str, Any]],
    comparison: TextTable | None,
    quality_figures: Sequence[str],
    study: Any = None,
) -> Path:
    """Write the page of these parts; `study`: what stands before them, as study.html.j2 shows it. Its path."""
    values = {"study": study, "runs": runs, "comparison": comparison, "quality_figures": quality_figures}
    more = {"legend": legend_of_work(), "written": time.strftime("%Y-%m-%d %H:%M")}
    write_text(Path(out), _render({**values, **more}))
    return Path(out)


def write_run_report(location: str | Path, say: Callable[[str], None]) -> None:
    """Write the page on one run into its directory, and say where; what goes wrong is said, and no more."""
    try:
        run = RunDirectory(location)
        write_report([location], run.path / REPORT_FILE)
        run.publish(REPORT_FILE)
        say(f"Report: {run.location}/{REPORT_FILE}")
    except Exception as error:  # noqa: BLE001 - a report's failure is none of the run's
        say(f"No report: {str(error).rstrip('.')}. `{command('report', location)}` tries again.")


def _render(values: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("ebdiff_orchestrator.reports", "page")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(values)


def _quality_figures(runs: Sequence[tuple[Path, Manifest]], numbers: itertools.count[int]) -> list[str]:
    """Of each measure that two runs or more have, quality against what the runs took."""
    points: dict[tuple[str, bool, str], list[Point]] = {}
    for location, manifest in runs:
        found = measures_of(manifest)
        if found.all_hours is None:
            continue
        for value in measured_values(manifest):
            point = Point(f"{method_of(manifest.plan)} [{location.name}]", found.all_hours.hours, value.value)
            points.setdefault((value.label, value.higher_is_better, found.all_hours.unit), []).append(point)
    return [
        quality_figure(Quality(label, higher, hours, of_runs), numbers)
        for (label, higher, hours), of_runs in points.items()
        if len(of_runs) > 1
    ]
