"""The command `ebdiff doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer import Argument, Exit, Option

from ebdiff_orchestrator.cli.arguments import SetOption
from schemas.limits import MANY, MOST_WORKERS
from schemas.process import quick_imports

if TYPE_CHECKING:
    from ebdiff_orchestrator.doctor.facts import Examination

_STYLES = {"fine": "green", "note": "yellow", "wrong": "bold red"}
PlanArgument = Annotated[
    str | None, Argument(metavar="[PLAN]", help="Check also what this plan asks for: a preset's name or a YAML file.")
]
RunDirOption = Annotated[
    str | None, Option(metavar="DIR", help="Where the run will live, folder or URL; default: runs/NAME.")
]
AddressOption = Annotated[str | None, Option(help="The Ray cluster; default: RAY_ADDRESS, else this machine alone.")]
NodesOption = Annotated[
    int | None, Option(min=1, max=MOST_WORKERS, help="How many nodes there should be; waits for them.")
]


def doctor(
    plan: PlanArgument = None,
    changes: SetOption = None,
    run_dir: RunDirOption = None,
    address: AddressOption = None,
    nodes: NodesOption = None,
    wait: Annotated[float, Option(min=0, max=MANY, help="Seconds to wait for --nodes.")] = 300.0,
    as_json: Annotated[bool, Option("--json", help="Findings and the nodes' facts as JSON.")] = False,
) -> None:
    """Check this machine, or every node of a cluster, before a long run; exit 1 if something is wrong."""
    with quick_imports():
        from ebdiff_orchestrator.doctor.examine import examine
        from ebdiff_orchestrator.plans.load import load_plan
        from ebdiff_orchestrator.run.resolve import adopt_dense

    loaded = load_plan(plan, changes or ()) if plan is not None else None
    if loaded is not None and loaded.model.pretrained is not None:
        loaded, _ = adopt_dense(loaded)
    folder = run_dir or (str(Path("runs", loaded.name)) if loaded is not None else None)
    examination = examine(loaded, folder, address, nodes, wait)
    print(json.dumps(examination.as_json(), indent=2)) if as_json else _show(examination)
    if examination.wrong:
        raise Exit(1)


def _show(examination: Examination) -> None:
    """One row a finding, with its remedy below it, and a line that sums up."""
    table = Table(show_edge=False, pad_edge=False, show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in examination.findings:
        what = f"{finding.what}\n-> {finding.remedy}" if finding.remedy else finding.what
        table.add_row(Text(finding.status, _STYLES[finding.status]), finding.check, Text(what))
    total, bad = len(examination.findings), examination.wrong
    Console().print(table)
    print(f"{bad} of {total} checks found something wrong." if bad else f"{total} checks, all fine.")
