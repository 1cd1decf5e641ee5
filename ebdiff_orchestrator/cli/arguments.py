"""Arguments that several commands of the command line share; an option without a name has that of its parameter."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

PlanArgument = Annotated[str, Argument(metavar="PLAN", help="A preset's name (see `ebdiff presets`) or a YAML file.")]
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
    str | None,
    Option(help="The Ray cluster; default: RAY_ADDRESS (set under `ray job submit`), else an embedded Ray."),
]
