"""The commands that read and change nothing: `ebdiff status | tickets | compare | report | estimate`."""

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from rich.console import Console
from rich.live import Live
from typer import Abort, Argument, Option

from ebdiff_orchestrator.cli.arguments import PlanArgument, RunArgument, SetOption
from ebdiff_orchestrator.reports.formats import check_replaceable, say
from schemas.errors import user_error
from schemas.limits import MANY, MOST_STEPS, MOST_TIMESTEPS, MOST_WORKERS

_APPEARS_WITHIN_S = 60.0
_Number = TypeVar("_Number", int, float)


RunsArgument = Annotated[list[Path], Argument(metavar="RUN...", help="Run directories, a row each, in this order.")]
PageArgument = Annotated[list[Path], Argument(metavar="RUN...", help="Run directories, or the folder of one study.")]
DenseRunOption = Annotated[
    Path | None,
    Option("--against", metavar="RUN", help="The dense run to measure against; default: the only dense one of RUN..."),
]
DenseOption = Annotated[
    Path | None, Option(metavar="RUN|FOLDER", help="A trained dense model whose masks to compare with.")
]
AgainstOption = Annotated[
    list[Path] | None, Option(metavar="RUN", help="Another run whose tickets to compare with; repeatable.")
]
OutOption = Annotated[Path | None, Option(metavar="FOLDER", help="Write CSV and PNG of each ticket and sparse region.")]
PlotOption = Annotated[Path | None, Option(metavar="FILE.png", help="Write all pictures as one.")]
StepsOption = Annotated[int, Option(min=2, max=MOST_TIMESTEPS, help="Steps to time of each network; 2 on a slow CPU.")]
DenseStepsOption = Annotated[
    int | None, Option(min=1, max=MOST_STEPS, help="Steps of the dense training to compare with.")
]
IntervalsOption = Annotated[int, Option(min=1, max=MOST_STEPS, help="Assume that draws converge at this mask.")]
ImagesOption = Annotated[int | None, Option(min=1, max=MOST_STEPS, help="Images of the data set, which is not opened.")]
GpusOption = Annotated[int | None, Option(min=1, max=MOST_WORKERS, help="Devices; default: one a region.")]


def status(
    run_dir: RunArgument,
    as_json: Annotated[bool, Option("--json", help="The manifest and the workers' progress as JSON.")] = False,
    watch: Annotated[bool, Option("--watch", help="Keep showing until the run is finished or Ctrl-C.")] = False,
) -> None:
    """Show what a run has done and what it is doing."""
    from ebdiff_orchestrator.run.run_table import read_status

    console = Console()
    if not watch:
        current = read_status(run_dir)
        print(json.dumps(current.as_json(), indent=2)) if as_json else console.print(current.as_table())
        return
    try:
        _watch(run_dir, as_json, console)
    except KeyboardInterrupt:  # the way to end it, and nothing of the run is interrupted
        raise Abort from None


def _watch(run_dir: Path, as_json: bool, console: Console) -> None:
    from ebdiff_orchestrator.run.run_table import read_status

    _await_run(run_dir)
    live = Live(console=console, auto_refresh=False) if console.is_terminal and not as_json else None
    with live or nullcontext():
        while True:
            current = read_status(run_dir)
            if live is not None:
                live.update(current.as_table(), refresh=True)
            elif as_json:
                print(json.dumps(current.as_json()), flush=True)
            else:
                console.print(current.as_table())
            if current.manifest.finished():
                return
            time.sleep(1 if live is not None else 10)


def _await_run(run_dir: Path) -> None:
    """A launch that has just been given takes a while before there is a run to look at."""
    from ebdiff_orchestrator.run.run_directory import RunDirectory

    run, deadline = RunDirectory(run_dir), time.monotonic() + _APPEARS_WITHIN_S
    if run.exists():
        return
    print(f"No run in {run.short_location} yet; waiting for one, {_APPEARS_WITHIN_S:.0f} s.", file=sys.stderr)
    while not run.exists() and time.monotonic() < deadline:
        time.sleep(1)


def tickets(
    run_dir: RunArgument,
    dense: DenseOption = None,
    against: AgainstOption = None,
    thresholds: Annotated[str, Option(help="Largest distances to try.")] = "0.05,0.1,0.2",
    queue_lengths: Annotated[str, Option(help="Queue lengths to try.")] = "3,5,10",
    strides: Annotated[str, Option(help="Try queues of every n-th mask.")] = "1,10,100",
    last: Annotated[int | None, Option(min=2, max=MANY, help="Show only the last N masks.")] = None,
    as_json: Annotated[bool, Option("--json", help="Everything, with the full matrices.")] = False,
    out: OutOption = None,
    plot: PlotOption = None,
) -> None:
    """Show when tickets were drawn, when they would have been by other rules, how they differ, and how masks move."""
    from ebdiff_orchestrator.reports.tickets import Settings, report_tickets
    from ebdiff_orchestrator.reports.tickets_view import check_out, draw_pictures, show, write_report

    settings = Settings(
        thresholds=tuple(_numbers("--thresholds", thresholds, float)),
        queue_lengths=tuple(_numbers("--queue-lengths", queue_lengths, int)),
        strides=tuple(_numbers("--strides", strides, int)),
    )
    if out is not None:
        check_out(out)
    if plot is not None:
        check_replaceable("--plot", plot, ".png")
    report = report_tickets(run_dir, settings, against or (), dense)
    written = write_report(report, out, last) if out is not None else []
    if plot is not None and (report.tickets or report.moves):
        written.append(draw_pictures(report, plot, last))
    if as_json:
        print(json.dumps(report.as_json()))
        return
    console = Console()
    show(report, console, last)
    for path in written:
        console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)


def compare(
    runs: RunsArgument,
    against: DenseRunOption = None,
    form: Annotated[Literal["table", "markdown", "csv", "json"], Option("--format", help="How to print.")] = "table",
) -> None:
    """Compare runs as the paper's tables do: size, FID, steps, speed-up, time; a dash for what was not measured."""
    from ebdiff_orchestrator.reports.compare import compare_runs, comparison_table
    from ebdiff_orchestrator.reports.formats import as_csv, as_markdown, print_table

    comparison = compare_runs(runs, against)
    rows = [row.as_json() for row in comparison.rows]
    if form == "json":
        footnotes = comparison_table(comparison).footnotes
        print(json.dumps({"against": comparison.against, "rows": rows, "footnotes": footnotes}, indent=2))
    elif form == "csv":
        print(as_csv(rows), end="")
    elif form == "markdown":
        print(as_markdown(comparison_table(comparison)), end="")
    else:
        print_table(comparison_table(comparison), Console())


def report(
    runs: PageArgument,
    out: Annotated[Path, Option(metavar="FILE.html", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one HTML page on a run, or on several side by side, or on a study: samples, quality, losses, time."""
    from ebdiff_orchestrator.study.load import is_begun

    if len(runs) == 1 and is_begun(runs[0]):
        from ebdiff_orchestrator.study.report import write_study_report

        written = write_study_report(runs[0], out)
    else:
        from ebdiff_orchestrator.reports.page import write_report

        written = write_report(runs, out)
    say(Console(), f"written: {written} ({written.stat().st_size / 1e6:.2f} MB)", soft_wrap=True)


def estimate(
    plan: PlanArgument,
    changes: SetOption = None,
    steps: StepsOption = 5,
    dense_steps: DenseStepsOption = None,
    draw_intervals: IntervalsOption = 7,
    images: ImagesOption = None,
    gpus: GpusOption = None,
    as_json: Annotated[bool, Option("--json", help="The numbers as JSON.")] = False,
) -> None:
    """Predict a run's time, hours and speed-up from a few steps on this machine's device; needs no data."""
    from ebdiff_orchestrator.plans.load import load_plan
    from ebdiff_orchestrator.reports.estimate import Assumptions, show_estimate
    from ebdiff_orchestrator.reports.estimate import estimate as estimate_plan

    progress = Console(stderr=True)
    assume = Assumptions(draw_intervals=draw_intervals, images=images, dense_steps=dense_steps, devices=gpus)
    found = estimate_plan(
        load_plan(plan, changes or ()), steps, assume, lambda line: progress.print(line, markup=False, highlight=False)
    )
    print(json.dumps(found.as_json(), indent=2)) if as_json else show_estimate(found, Console())


def _numbers(option: str, text: str, kind: type[_Number]) -> list[_Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        expected = f"{'whole numbers' if kind is int else 'numbers'} with commas between them"
        raise user_error(option, text, expected, "Change it.") from None
