"""What `ebdiff status` shows."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group

from ebdiff_orchestrator.reports.formats import plain_table
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.view import progress_table
from schemas.job import PROGRESS_FILE, Progress
from schemas.manifest import Manifest, StageRecord
from schemas.process import unix_time

_FRESH_S = 60.0


@dataclass(frozen=True)
class RunStatus:
    """The manifest, and what each stage's worker last said."""

    manifest: Manifest
    progress: dict[str, Progress]

    def as_json(self) -> dict[str, Any]:
        """For `ebdiff status --json`."""
        return {
            "finished": self.manifest.finished(),
            "manifest": self.manifest.model_dump(mode="json"),
            "progress": {name: progress.model_dump(mode="json") for name, progress in self.progress.items()},
        }

    def as_table(self) -> Group:
        """One row a stage, and one a worker that is heard of."""
        headings = ("stage", "status", "attempts", "began", "seconds", "steps", "note")
        table = plain_table(headings, left=headings, title=f"run {self.manifest.plan.name}")
        for record in self.manifest.stages.values():
            table.add_row(*_cells(record))
        heard = {n: p for n, p in self.progress.items() if unix_time() - p.updated_at < _FRESH_S}
        running = {n: p for n, p in heard.items() if p.state == "running"}
        return Group(table, progress_table(running)) if running else Group(table)


def read_status(run_dir: str | Path) -> RunStatus:
    """The status of the run in `run_dir`; UserError if there is none."""
    directory = RunDirectory(run_dir)
    manifest = directory.read()
    progress, files = {}, {name: directory.fetch(f"{name}/{PROGRESS_FILE}") for name in manifest.stages}
    for name in manifest.stages:
        with suppress(OSError, ValueError):  # not there, or not as written: at work, the next one comes in a second
            progress[name] = Progress.model_validate_json(files[name].read_text())
    return RunStatus(manifest, progress)


def _cells(record: StageRecord) -> tuple[str, ...]:
    began = time.strftime("%H:%M:%S", time.localtime(record.started_at)) if record.started_at else ""
    seconds = f"{record.active_s:.0f}" if record.status == "done" else ""
    status = "starting" if record.status == "pending" and record.attempts and not record.error else record.status
    return record.name, status, str(record.attempts), began, seconds, str(record.steps or ""), record.error or ""
