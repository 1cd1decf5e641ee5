"""The command `ebdiff doctor`."""

import json
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Exit, Option

from ebdiff_orchestrator.cli.arguments import SetOption
from schemas.limits import MANY, MOST_WORKERS
from schemas.process import quick_imports

PlanArgument = Annotated[
    str | None,
    Argument(metavar="[PLAN]", help="Check also what this plan asks for: a preset's name or a YAML file."),
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
        from ebdiff_orchestrator.doctor.report import show
        from ebdiff_orchestrator.plans.load import load_plan
        from ebdiff_orchestrator.run.resolve import adopt_dense

    loaded = load_plan(plan, changes or ()) if plan is not None else None
    if loaded is not None and loaded.model.pretrained is not None:
        loaded, _ = adopt_dense(loaded)
    folder = run_dir or (str(Path("runs", loaded.name)) if loaded is not None else None)
    examination = examine(loaded, folder, address, nodes, wait)
    print(json.dumps(examination.as_json(), indent=2)) if as_json else show(examination, Console())
    if examination.wrong:
        raise Exit(1)
