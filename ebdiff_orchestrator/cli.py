"""The command line: what its user types after `ebdiff`; each command is a call of the package's own functions."""

from __future__ import annotations

import json
import sys
import time
import traceback
from contextlib import nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ebdiff_orchestrator.arguments import PlanArgument, RunArgument, SetOption
from ebdiff_orchestrator.evaluation.command import add_evaluate_command
from ebdiff_orchestrator.interrupts import RunStopped
from ebdiff_orchestrator.reports.commands import add_report_commands
from ebdiff_orchestrator.view import sampling_report, terminal_view
from schemas.errors import RunFailed, UserError
from schemas.manifest import MANIFEST_FILE, read_manifest
from schemas.plan import Plan

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a diffusion model as a few small timestep experts, side by side, and get one diffusers pipeline. "
    "Try: ebdiff launch digits. Exit codes: 0 done, 1 the run failed, 2 bad input, 130 interrupted.",
)

ReuseOption = Annotated[
    list[Path] | None,
    typer.Option("--reuse", metavar="RUN", help="Take equal tickets and experts over from this run; repeatable."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address", help="The Ray cluster; default: RAY_ADDRESS (set under `ray job submit`), else an embedded Ray."
    ),
]


def print_version(wanted: bool) -> None:
    """Print the package's version and exit, if wanted."""
    if wanted:
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
) -> None:
    """Run a plan to a finished ensemble and a sample grid; an unfinished run in DIR goes on, a finished one stays."""
    from ebdiff_orchestrator.plans import load_plan

    loaded = load_plan(plan, changes or ())
    folder = run_dir or Path("runs", loaded.name)
    _start_ray_early(folder, loaded, address)
    from ebdiff_orchestrator.driver import launch as launch_plan

    launch_plan(loaded, folder, address=address, view=terminal_view(), reuse=reuse or ())


@app.command()
def resume(run_dir: RunArgument, reuse: ReuseOption = None, address: AddressOption = None) -> None:
    """Go on with an unfinished run from its last good checkpoints."""
    _start_ray_early(run_dir, None, address)
    from ebdiff_orchestrator.driver import resume as resume_run

    resume_run(run_dir, address=address, view=terminal_view(), reuse=reuse or ())


@app.command()
def extend(run_dir: RunArgument, changes: SetOption = None, address: AddressOption = None) -> None:
    """Train a run's experts further, as in --set training.steps=300000; the bits are those of one long run."""
    from ebdiff_orchestrator.driver import extend as extend_run

    extend_run(run_dir, changes or (), address=address, view=terminal_view())


@app.command()
def status(
    run_dir: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest and the workers' progress as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing until the run is finished or Ctrl-C.")] = False,
) -> None:
    """Show what a run has done and what it is doing."""
    from ebdiff_orchestrator.status import read_status

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
        int | None, typer.Option("--gpus", min=1, help="Show when and on which of N GPUs the regions run.")
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
        float | None, typer.Option("--gpu-memory", min=0.01, metavar="GIB", help="With --measure: what a GPU holds.")
    ] = None,
) -> None:
    """Show what would run, and check it; nothing is trained."""
    from ebdiff_orchestrator.dense_start import adopt_dense
    from ebdiff_orchestrator.planning import look_ahead
    from ebdiff_orchestrator.plans import load_plan, plan_as_yaml

    if as_yaml and (as_json or gpus):
        raise UserError("--yaml: expected without --json and --gpus. Leave one out.")
    if gpus is None and (measure or efficiency or gpu_memory):
        raise UserError("--measure, --efficiency, --gpu-memory: expected with --gpus. Add it, as in --gpus 3.")
    loaded = load_plan(plan, changes or ())
    if loaded.model.pretrained is not None:
        loaded, _ = adopt_dense(loaded)
    outlook = look_ahead(loaded)
    placements = None
    if gpus is not None:
        from ebdiff_orchestrator.reports.placements import placements_of

        say = partial(print, file=sys.stderr)
        placements = placements_of(outlook, gpus, measure, efficiency, gpu_memory, say)
    if as_json:
        more = {"placements": placements.as_json()} if placements else {}
        print(json.dumps(outlook.as_json() | more, indent=2))
    elif as_yaml:
        print(plan_as_yaml(loaded), end="")
    else:
        from ebdiff_orchestrator.reports.placements_view import show_plan

        show_plan(outlook, placements, Console())


@app.command()
def sample(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory, or an ensemble's folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the PNGs and grid.png.")],
    count: Annotated[int, typer.Option("-n", "--num-images", min=1, help="How many images.")] = 64,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Sampling steps; default: the ensemble's.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Image i depends on (seed, i) alone.")] = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images at a time; changes only speed and memory.")
    ] = 64,
    classes: Annotated[
        list[int] | None,
        typer.Option("--class", min=0, help="A class to draw, for a class-conditional ensemble; repeatable, in turn."),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", min=0, help="Guidance scale; default: the ensemble's; 1: none.")
    ] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option("--dtype", help="Precision of the networks; fp16: GPU only.")
    ] = "fp32",
    compile_experts: Annotated[
        bool,
        typer.Option(
            "--compile", help="torch.compile each expert at its first step: a minute each on a CPU, so for many images."
        ),
    ] = False,
    offload: Annotated[
        bool,
        typer.Option("--offload", help="Read an expert's weights at its first step; one at a time is on the device."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Share the batches out over N workers of a Ray cluster; default: this process."
        ),
    ] = None,
    address: AddressOption = None,
) -> None:
    """Draw images from a finished ensemble."""
    from ebdiff_orchestrator.ensemble.images import check_images_folder, write_images
    from ebdiff_orchestrator.sampling import ImageJob, sample_here, sample_on_workers

    if address is not None and workers is None:
        raise UserError("--address: expected --workers with it; one process needs no Ray. Give both or neither.")
    check_images_folder(out)
    job = ImageJob(
        ensemble=str(run_dir),
        count=count,
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        classes=tuple(classes) if classes else None,
        guidance_scale=guidance,
        dtype=dtype,
        compile=compile_experts,
        offload=offload,
    )
    with terminal_view() as view:
        if workers is None:
            drawn = sample_here(job, sampling_report(view))
        else:
            drawn = sample_on_workers(job, workers, address, view)
    write_images(drawn.pixels, out)
    print(f"{count} images and grid.png in {out}; peak memory {drawn.peak_memory_bytes / 2**20:,.0f} MiB")


@app.command()
def presets() -> None:
    """List the plans that come with the package."""
    from ebdiff_orchestrator.preset_plans import methods
    from ebdiff_orchestrator.preset_plans import presets as all_presets

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("preset", no_wrap=True)
    table.add_column("what it trains")
    for name, description in all_presets().items():
        table.add_row(name, description)
    table.add_section()
    for name, description in methods().items():
        table.add_row(f"PRESET-{name}", description)
    Console().print(table)
    print("\nMethods join: cifar10-eb, celeba64-dense, cifar10-eb-speed. `ebdiff plan NAME` shows what one would run.")


def _start_ray_early(folder: Path, loaded: Plan | None, address: str | None) -> None:
    """Ray takes seconds to start, torch takes seconds to import: both at once, if there is anything to be run."""
    from ebdiff_orchestrator.cluster import start_early

    known = read_manifest(folder) if (folder / MANIFEST_FILE).is_file() else None
    plan = loaded or (known.plan if known else None)
    if plan is not None and not (known and known.finished()):
        start_early(plan.workers, len(plan.regions), address)


add_report_commands(app)
add_evaluate_command(app)


def main() -> None:
    """Run the command line; exit 0 done, 1 failed run, 2 bad input, 130 interrupted."""
    sys.exit(_guarded())


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
    except Exception as error:  # noqa: BLE001 - the last place; click's usage errors know how to show themselves
        show = getattr(error, "show", None)
        if show is None:
            return _fail(error, EXIT_FAILED, unexpected=True)
        show()
        return int(getattr(error, "exit_code", EXIT_BAD_INPUT))
    if code == EXIT_INTERRUPTED:  # typer's word for a Ctrl-C outside the job loop
        print("ebdiff: interrupted; the same command goes on from what is saved.", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _fail(error: Exception, code: int, unexpected: bool = False) -> int:
    if any(_debug):
        traceback.print_exception(error)
    else:
        kind = f"{type(error).__name__}: " if unexpected else ""
        hint = " (--debug before the command shows where)" if unexpected else ""
        print(f"ebdiff: {kind}{error}{hint}", file=sys.stderr)
    return code
