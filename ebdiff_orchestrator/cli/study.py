"""The command `ebdiff study`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from typer import Argument, Option

from ebdiff_orchestrator.cli.arguments import AddressOption, SetOption
from ebdiff_orchestrator.run.view import View
from schemas.errors import UserError, user_error
from schemas.process import quick_imports


def studies_like(incomplete: str) -> list[str]:
    """For the shell: the studies of the package that begin so."""
    from ebdiff_orchestrator.plans.preset_plans import studies

    return [name for name in studies() if name.startswith(incomplete)]


StudyArgument = Annotated[
    str,
    Argument(
        metavar="STUDY",
        help="A study's name (see `ebdiff presets`), a YAML file, or a begun study's folder.",
        autocompletion=studies_like,
    ),
]
SeedsOption = Annotated[int | None, Option(min=1, max=1000, metavar="N", help="Seeds 0 to N-1, not the study's.")]
DirOption = Annotated[
    Path | None, Option("--study-dir", metavar="DIR", help="Where the runs live; default: studies/NAME.")
]
TableOption = Annotated[bool, Option("--table", help="Run nothing: show what is there.")]
Form = Literal["table", "markdown", "json"]
FormOption = Annotated[Form, Option("--format", help="How to print the table.")]
PlotOption = Annotated[Path | None, Option(metavar="FILE", help="Write quality against device-hours, as .svg or .png.")]


def study(
    study: StudyArgument,
    seeds: SeedsOption = None,
    study_dir: DirOption = None,
    changes: SetOption = None,
    address: AddressOption = None,
    table: TableOption = False,
    form: FormOption = "table",
    plot: PlotOption = None,
) -> None:
    """Run several plans with several seeds as one piece of work, and show one table: mean, deviation, cost.

    Interrupted, the same command goes on. Equal stages are made once; a row that fails says why, the others go on.
    """
    from ebdiff_orchestrator.study.load import is_begun, load_study

    if table and (seeds or changes):
        raise UserError("--table: expected without --seeds and --set, since it shows what was run. Leave one out.")
    loaded = load_study(study, changes or (), seeds)
    folder = study_dir or (Path(study) if is_begun(Path(study)) else Path("studies", loaded.name))
    if plot is not None:
        from ebdiff_orchestrator.study.report import check_plot

        check_plot(plot)
    if table:
        if not is_begun(folder):
            raise user_error("--study-dir", folder, "a study that was begun", "Start one without --table, or check it.")
        _show(folder, form, plot, asked_for=True)
        return
    from ebdiff_orchestrator.study.view import study_view

    view = study_view()
    seeds_text = ", ".join(map(str, loaded.seeds))
    view.line(f"{loaded.name}: {len(loaded.rows)} rows, seeds {seeds_text}, in {folder} ...")
    with quick_imports():
        from ebdiff_orchestrator.study.run_study import run_study
    try:
        with _reported(folder, view):
            run_study(loaded, folder, address=address, view=view)
    finally:
        if is_begun(folder):
            _show(folder, form, plot)


@contextmanager
def _reported(folder: Path, view: View) -> Iterator[None]:
    """Write the study's page once it has ended, also where runs failed; not where it was stopped."""
    from ebdiff_orchestrator.study.report import leave_study_report
    from schemas.errors import RunFailed

    try:
        yield
    except RunFailed:
        leave_study_report(folder, view.line)
        raise
    leave_study_report(folder, view.line)


def _show(folder: Path, form: Form, plot: Path | None, asked_for: bool = False) -> None:
    """The table in its form, and the plot, if there is anything to be drawn or nothing else was `asked_for`."""
    from ebdiff_orchestrator.reports.formats import as_markdown, print_table
    from ebdiff_orchestrator.study.results import results_table, study_results

    results = study_results(folder)
    if form == "json":
        print(json.dumps(results.as_json(), indent=2))
    elif form == "markdown":
        print(as_markdown(results_table(results)), end="")
    else:
        print_table(results_table(results), Console())
    if plot is not None and (results.measures or asked_for):
        from ebdiff_orchestrator.study.report import plot_results

        plot_results(results, plot)
