"""The command `ebdiff status`."""

import json
import time
from contextlib import nullcontext
from typing import Annotated

from rich.console import Console
from rich.live import Live
from typer import Option

from ebdiff_orchestrator.cli.arguments import RunArgument


def status(
    run_dir: RunArgument,
    as_json: Annotated[bool, Option("--json", help="The manifest and the workers' progress as JSON.")] = False,
    watch: Annotated[bool, Option("--watch", help="Keep showing until the run is finished or Ctrl-C.")] = False,
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
