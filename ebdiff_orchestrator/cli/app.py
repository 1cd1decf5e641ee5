"""The command line: what its user types after `ebdiff`; each command is a call of the package's own functions."""

from __future__ import annotations

import errno
import json
import signal
import sys
import time
import traceback
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ebdiff_orchestrator.cli.arguments import AddressOption, PlanArgument, RunArgument, SetOption
from ebdiff_orchestrator.cli.doctor import add_doctor_command
from ebdiff_orchestrator.cli.evaluate import add_evaluate_command
from ebdiff_orchestrator.cli.reports import add_report_commands
from ebdiff_orchestrator.cli.sample import add_sample_command
from ebdiff_orchestrator.run.interrupts import RunStopped
from ebdiff_orchestrator.run.usage import usage_problem
from ebdiff_orchestrator.run.view import terminal_view
from schemas.environment import wait_passively
from schemas.errors import RunFailed, UserError, disk_problem, problem, shown
from schemas.limits import MANY, MOST_WORKERS
from schemas.secrets import without_secrets

if TYPE_CHECKING:
    from schemas.plan import Plan

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a diffusion model as a few small timestep experts, side by side, and get one diffusers pipeline. "
    "Try: ebdiff launch digits. Exit codes: 0 done, 1 the run failed, 2 bad input, 130 interrupted.",
)

ReuseOption = Annotated[
    list[Path] | None,
    typer.Option("--reuse", metavar="RUN", help="Take equal tickets and experts over from this run; repeatable."),
]


TakeOverOption = Annotated[
    bool,
    typer.Option(
        "--take-over", help="Take the run from another launch or resume that works on it; that one then stops."
    ),
]


def print_version(wanted: bool) -> None:
    """Print the package's version and exit, if wanted."""
    if wanted:
        from importlib import metadata

        print(metadata.version("ebdiff-orchestrator"))
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""
    _debug.append(debug)


@app.command()
def launch(
    plan: PlanArgument,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", metavar="DIR", help="Where the run lives; default: runs/NAME.")
    ] = None,
    changes: SetOption = None,
    reuse: ReuseOption = None,
    address: AddressOption = None,
    take_over: TakeOverOption = False,
) -> None:
    """Run a plan to a finished ensemble and a sample grid; an unfinished run in DIR goes on, a finished one stays."""
    from ebdiff_orchestrator.plans.load import load_plan

    loaded = load_plan(plan, changes or ())
    folder = run_dir or Path("runs", loaded.name)
    view = terminal_view()
    view.line(f"{loaded.name}: launching in {folder} ...")  # torch and Ray take seconds, on a busy machine minutes
    _start_ray_early(folder, loaded, address)
    from ebdiff_orchestrator.run.launch import launch as launch_plan

    launch_plan(loaded, folder, address=address, view=view, reuse=reuse or (), take_over=take_over)


@app.command()
def resume(
    run_dir: RunArgument,
    reuse: ReuseOption = None,
    address: AddressOption = None,
    take_over: TakeOverOption = False,
) -> None:
    """Go on with an unfinished run from its last good checkpoints."""
    view = terminal_view()
    view.line(f"Going on with {run_dir} ...")
    _start_ray_early(run_dir, None, address)
    from ebdiff_orchestrator.run.launch import resume as resume_run

    resume_run(run_dir, address=address, view=view, reuse=reuse or (), take_over=take_over)


@app.command()
def extend(run_dir: RunArgument, changes: SetOption = None, address: AddressOption = None) -> None:
    """Train a run's experts further, as in --set training.steps=300000; the bits are those of one long run."""
    from ebdiff_orchestrator.run.launch import extend as extend_run

    if not changes:
        raise UserError("--set: expected the new number of steps. Give it, as in --set training.steps=300000.")
    extend_run(run_dir, changes or (), address=address, view=terminal_view())


@app.command()
def status(
    run_dir: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest and the workers' progress as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing until the run is finished or Ctrl-C.")] = False,
) -> None:
    """Show what a run has done and what it is doing."""
    from ebdiff_orchestrator.reports.status import read_status

    console = Console()
    if not watch:
        current = read_status(run_dir)
        print(json.dumps(current.as_json(), indent=2)) if as_json else console.print(current.as_table())
        return
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


@app.command()
def plan(
    plan: PlanArgument,
    changes: SetOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Parameters and multiply-accumulates as plain integers.")
    ] = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="The whole plan, defaults included, ready to edit.")] = False,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=1, max=MOST_WORKERS, help="Show when and on which of N GPUs the regions run."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --gpus: time the steps on this machine's device.")
    ] = False,
    efficiency: Annotated[
        float | None,
        typer.Option(
            "--efficiency",
            min=0.01,
            max=1,
            help="With --gpus: share of the speed that each doubling of a region's GPUs keeps; default: the plan's.",
        ),
    ] = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option("--gpu-memory", min=0.01, max=MANY, metavar="GIB", help="With --measure: what a GPU holds."),
    ] = None,
) -> None:
    """Show what would run, and check it; nothing is trained."""
    from ebdiff_orchestrator.plans.data_checks import check_resolution, data_notes
    from ebdiff_orchestrator.plans.load import load_plan, plan_as_yaml

    if as_yaml and (as_json or gpus):
        raise UserError("--yaml: expected without --json and --gpus. Leave one out.")
    if gpus is None and (measure or efficiency or gpu_memory):
        raise UserError("--measure, --efficiency, --gpu-memory: expected with --gpus. Add it, as in --gpus 3.")
    loaded = load_plan(plan, changes or ())
    if loaded.model.pretrained is not None:
        from ebdiff_orchestrator.run.dense_start import adopt_dense

        loaded, _ = adopt_dense(loaded)
    if as_yaml:
        check_resolution(loaded)
        print(plan_as_yaml(loaded), end="")
    else:
        _show_outlook(loaded, as_json, gpus, measure, efficiency, gpu_memory)
    for note in data_notes(loaded):
        print(f"note: {note}", file=sys.stderr if as_json or as_yaml else sys.stdout)


def _show_outlook(
    loaded: Plan, as_json: bool, gpus: int | None, measure: bool, efficiency: float | None, gpu_memory: float | None
) -> None:
    """What only the network tells: sizes, and the placements that they lead to. torch is imported."""
    from ebdiff_orchestrator.plans.preview import look_ahead

    outlook = look_ahead(loaded)
    placements = None
    if gpus is not None:
        from ebdiff_orchestrator.reports.placements import placements_of

        say = partial(print, file=sys.stderr)
        placements = placements_of(outlook, gpus, measure, efficiency, gpu_memory, say)
    if as_json:
        more = {"placements": placements.as_json()} if placements else {}
        print(json.dumps(outlook.as_json() | more, indent=2))
    else:
        from ebdiff_orchestrator.reports.placements_view import show_plan

        show_plan(outlook, placements, Console())


@app.command()
def presets() -> None:
    """List the plans that come with the package."""
    from ebdiff_orchestrator.plans.preset_plans import methods
    from ebdiff_orchestrator.plans.preset_plans import presets as all_presets

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("preset", no_wrap=True)
    table.add_column("what it trains")
    for name, description in all_presets().items():
        table.add_row(name, description)
    table.add_section()
    for name, description in methods().items():
        table.add_row(f"PRESET-{name}", description)
    Console().print(table)
    print("\nMethods join: cifar10-eb, celeba64-dense, cifar10-eb-speed.\n`ebdiff plan NAME` shows what one would run.")


def _start_ray_early(folder: Path, loaded: Plan | None, address: str | None) -> None:
    """Ray takes seconds to start, torch takes seconds to import: both at once, if there is anything to be run."""
    from ebdiff_orchestrator.cluster import start_early
    from region_workers.storage.json_files import read_manifest
    from schemas.manifest import MANIFEST_FILE

    known = read_manifest(folder) if (folder / MANIFEST_FILE).is_file() else None
    plan = loaded or (known.plan if known else None)
    if plan is not None and not (known and known.finished()):
        start_early(plan.workers, len(plan.regions), address)


add_report_commands(app)
add_sample_command(app)
add_evaluate_command(app)
add_doctor_command(app)


def main() -> None:
    """Run the command line; exit 0 done, 1 failed run, 2 bad input, 130 interrupted (SIGTERM too)."""
    signal.signal(signal.SIGTERM, _interrupt)
    wait_passively()
    sys.exit(_guarded())


def _interrupt(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C. Where Ray has begun to start, its own handler was here first, and would abort this process in 3 s."""
    signal.alarm(0)
    signal.default_int_handler(number, frame)


_debug: list[bool] = []


def _guarded() -> int:
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        return _fail(error, EXIT_BAD_INPUT)
    except RunFailed as error:
        return _fail(error, EXIT_FAILED)
    except RunStopped as error:
        return _fail(error, EXIT_INTERRUPTED)
    except typer.Abort:
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            expected = "a name of at most 255 bytes"
            return _fail(
                UserError(problem("path", shown(error.filename), expected, "Give a shorter one.")), EXIT_BAD_INPUT
            )
        told = disk_problem(error)
        return _fail(RunFailed(f"{told} Then the same command goes on.") if told else error, EXIT_FAILED, not told)
    except Exception as error:  # noqa: BLE001 - the last place
        wrong = usage_problem(error, sys.argv)
        if wrong is None:
            return _fail(error, EXIT_FAILED, unexpected=True)
        print(without_secrets(wrong), file=sys.stderr)
        return EXIT_BAD_INPUT
    if code == EXIT_INTERRUPTED:  # typer's word for a Ctrl-C outside the job loop
        print("ebdiff: interrupted; the same command goes on from what is saved.", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _fail(error: Exception, code: int, unexpected: bool = False) -> int:
    if any(_debug):
        traceback.print_exception(error)
    else:
        kind = f"{type(error).__name__}: " if unexpected else ""
        hint = " (--debug before the command shows where)" if unexpected else ""
        print(without_secrets(f"ebdiff: {kind}{error}{hint}"), file=sys.stderr)
    return code
