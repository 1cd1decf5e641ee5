"""Arguments that several commands of the command line share; an option without a name has that of its parameter."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def plans_like(incomplete: str) -> list[str]:
    """For the shell: the presets that begin so, and once one stands there its methods; a file it completes itself."""
    from ebdiff_orchestrator.plans.preset_plans import methods, presets

    joined = [f"{preset}-{method}" for preset in presets() if incomplete.startswith(preset) for method in methods()]
    return [name for name in (*presets(), *joined) if name.startswith(incomplete)]


PlanArgument = Annotated[
    str,
    Argument(metavar="PLAN", help="A preset's name (see `ebdiff presets`) or a YAML file.", autocompletion=plans_like),
]
SetOption = Annotated[
    list[str] | None,
    Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a field of the plan, as in training.steps=2000 or regions.0.pruning_ratio=0.5; repeatable.",
    ),
]
RunArgument = Annotated[Path, Argument(metavar="DIR", help="The run directory.")]
SeedOption = Annotated[int, Option(help="Image i depends on (seed, i) alone.")]
AddressOption = Annotated[
    str | None, Option(help="The Ray cluster; default: RAY_ADDRESS (set under `ray job submit`), else an embedded Ray.")
]
