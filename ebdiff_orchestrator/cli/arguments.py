"""Arguments that several commands of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PlanArgument = Annotated[
    str, typer.Argument(metavar="PLAN", help="A preset's name (see `ebdiff presets`) or a YAML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a field of the plan, as in training.steps=2000 or regions.0.pruning_ratio=0.5; repeatable.",
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The run directory.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address", help="The Ray cluster; default: RAY_ADDRESS (set under `ray job submit`), else an embedded Ray."
    ),
]
