"""The commands that train: `ebdiff launch | resume | extend`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from ebdiff_orchestrator.cli.arguments import AddressOption, PlanArgument, RunArgument, SetOption
from ebdiff_orchestrator.run.view import View, terminal_view
from schemas.errors import UserError
from schemas.process import quick_imports

if TYPE_CHECKING:
    from ebdiff_orchestrator.run.run_directory import RunDirectory
    from schemas.plan import Plan

ReuseOption = Annotated[
    list[Path] | None, Option(metavar="RUN", help="Take equal tickets and experts over from this run; repeatable.")
]
TakeOverOption = Annotated[
    bool,
    Option("--take-over", help="Take the run from another launch or resume that works on it; that one then stops."),
]


def launch(
    plan: PlanArgument,
    run_dir: Annotated[Path | None, Option(metavar="DIR", help="Where the run lives; default: runs/NAME.")] = None,
    changes: SetOption = None,
    reuse: ReuseOption = None,
    address: AddressOption = None,
    take_over: TakeOverOption = False,
) -> None:
    """Run a plan to a finished ensemble and a sample grid; an unfinished run in DIR goes on, a finished one stays."""
    from ebdiff_orchestrator.plans.load import load_plan, step_notes
    from ebdiff_orchestrator.run.run_directory import RunDirectory

    loaded = load_plan(plan, changes or ())
    folder = run_dir or Path("runs", loaded.name)
    run, view = RunDirectory(folder), terminal_view()
    # Said first: torch and Ray take seconds, on a busy machine minutes.
    view.line(f"{loaded.name}: launching in {run.short_location} ...")
    for note in step_notes(loaded, changes or ()):
        view.line(f"Note: {note}")
    _start_ray_early(run, loaded, address)
    with quick_imports():
        from ebdiff_orchestrator.run.launch import launch as launch_plan

    with _reported(folder, view):
        launch_plan(loaded, folder, address=address, view=view, reuse=reuse or (), take_over=take_over)


def resume(
    run_dir: RunArgument, reuse: ReuseOption = None, address: AddressOption = None, take_over: TakeOverOption = False
) -> None:
    """Go on with an unfinished run from its last good checkpoints."""
    from ebdiff_orchestrator.run.run_directory import RunDirectory

    run, view = RunDirectory(run_dir), terminal_view()
    view.line(f"Going on with {run.short_location} ...")
    _start_ray_early(run, None, address)
    with quick_imports():
        from ebdiff_orchestrator.run.launch import resume as resume_run

    with _reported(run_dir, view):
        resume_run(run_dir, address=address, view=view, reuse=reuse or (), take_over=take_over)


def extend(run_dir: RunArgument, changes: SetOption = None, address: AddressOption = None) -> None:
    """Train a run's experts further, as in --set training.steps=300000; the bits are those of one long run."""
    with quick_imports():
        from ebdiff_orchestrator.run.launch import extend as extend_run

    if not changes:
        raise UserError("--set: expected the new number of steps. Give it, as in --set training.steps=300000.")
    view = terminal_view()
    with _reported(run_dir, view, goes_further=True):
        extend_run(run_dir, changes or (), address=address, view=view)


@contextmanager
def _reported(run_dir: Path, view: View, goes_further: bool = False) -> Iterator[None]:
    """Write the run's page once it has ended, also where it failed; not where it was finished before, or taken over."""
    from ebdiff_orchestrator.run.ownership import RunTakenOverError
    from ebdiff_orchestrator.run.run_directory import RunDirectory
    from schemas.errors import RunFailed

    run = RunDirectory(run_dir)
    was_finished = not goes_further and run.exists() and run.read().finished()
    failed: RunFailed | None = None
    try:
        yield
    except RunTakenOverError:
        raise
    except RunFailed as error:
        failed = error
    from ebdiff_orchestrator.reports.page import write_run_report

    if not (was_finished and run.read().finished()):
        write_run_report(run_dir, view.line)
    if failed is not None:
        raise failed


def _start_ray_early(run: RunDirectory, loaded: Plan | None, address: str | None) -> None:
    """Ray takes seconds to start, torch takes seconds to import: both at once, if there is anything to be run."""
    from ebdiff_orchestrator.cluster.connecting import start_early

    known = run.read() if run.exists() else None
    plan = loaded or (known.plan if known else None)
    if plan is not None and not (known and known.finished()):
        start_early(plan.workers, len(plan.regions), address)
