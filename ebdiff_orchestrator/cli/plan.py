"""The commands that show what would run: `ebdiff plan | presets`."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
from typer import Option

from ebdiff_orchestrator.cli.arguments import PlanArgument, SetOption
from schemas.errors import UserError
from schemas.limits import MANY, MOST_WORKERS

if TYPE_CHECKING:
    from schemas.plan import Plan


JsonOption = Annotated[bool, Option("--json", help="Parameters and multiply-accumulates as plain integers.")]
YamlOption = Annotated[bool, Option("--yaml", help="The whole plan, defaults included, ready to edit.")]
GpusOption = Annotated[
    int | None, Option(min=1, max=MOST_WORKERS, help="Show when and on which of N GPUs the regions run.")
]
MeasureOption = Annotated[bool, Option("--measure", help="With --gpus: time the steps on this machine's device.")]
EfficiencyOption = Annotated[
    float | None,
    Option(
        min=0.01,
        max=1,
        help="With --gpus: share of the speed that each doubling of a region's GPUs keeps; default: the plan's.",
    ),
]
MemoryOption = Annotated[
    float | None, Option(min=0.01, max=MANY, metavar="GIB", help="With --measure: what a GPU holds.")
]


def plan(
    plan: PlanArgument,
    changes: SetOption = None,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
    gpus: GpusOption = None,
    measure: MeasureOption = False,
    efficiency: EfficiencyOption = None,
    gpu_memory: MemoryOption = None,
) -> None:
    """Show what would run, and check it; nothing is trained."""
    from ebdiff_orchestrator.plans.data_checks import check_resolution, data_notes
    from ebdiff_orchestrator.plans.load import load_plan, plan_as_yaml, step_notes

    if as_yaml and (as_json or gpus):
        raise UserError("--yaml: expected without --json and --gpus. Leave one out.")
    if gpus is None and (measure or efficiency or gpu_memory):
        raise UserError("--measure, --efficiency, --gpu-memory: expected with --gpus. Add it, as in --gpus 3.")
    loaded = load_plan(plan, changes or ())
    if loaded.model.pretrained is not None:
        from ebdiff_orchestrator.run.resolve import adopt_dense

        loaded, _ = adopt_dense(loaded)
    if as_yaml:
        check_resolution(loaded)
        print(plan_as_yaml(loaded), end="")
    else:
        _show_preview(loaded, as_json, gpus, measure, efficiency, gpu_memory)
    for note in [*step_notes(loaded, changes or ()), *data_notes(loaded)]:
        print(f"note: {note}", file=sys.stderr if as_json or as_yaml else sys.stdout)


def _show_preview(
    loaded: Plan, as_json: bool, gpus: int | None, measure: bool, efficiency: float | None, gpu_memory: float | None
) -> None:
    """What only the network tells: sizes, and the placements that they lead to. torch is imported."""
    from ebdiff_orchestrator.plans.preview import preview_plan, width_notes

    preview = preview_plan(loaded)
    placements = None
    if gpus is not None:
        from ebdiff_orchestrator.reports.placements import placements_of

        say = partial(print, file=sys.stderr)
        placements = placements_of(preview, gpus, measure, efficiency, gpu_memory, say)
    if as_json:
        more = {"placements": placements.as_json()} if placements else {}
        print(json.dumps(preview.as_json() | more, indent=2))
    else:
        from ebdiff_orchestrator.reports.sizes_table import show_networks

        show_networks(preview, Console())
        if placements is not None:
            from ebdiff_orchestrator.reports.placements import show_placements

            print()
            show_placements(placements, Console())
    for note in width_notes(loaded):
        Console(stderr=as_json).print(f"note: {note}", markup=False, highlight=False)


def presets() -> None:
    """List the plans and the studies that come with the package."""
    from ebdiff_orchestrator.plans.preset_plans import methods, studies
    from ebdiff_orchestrator.plans.preset_plans import presets as all_presets

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("preset", no_wrap=True)
    table.add_column("what it trains")
    for name, description in all_presets().items():
        table.add_row(name, description)
    table.add_section()
    for name, description in methods().items():
        table.add_row(f"PRESET-{name}", description)
    table.add_section()
    for name, description in studies().items():
        table.add_row(f"study {name}", description)
    Console().print(table)
    print("\nMethods join: cifar10-eb, celeba64-dense, cifar10-eb-speed.\n`ebdiff plan NAME` shows what one would run.")
    print("`ebdiff study NAME` runs all rows of a study.")
