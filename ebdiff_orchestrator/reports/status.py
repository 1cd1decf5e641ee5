"""What `ebdiff status` shows."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.run_table import RunTable, run_table
from schemas.job import PROGRESS_FILE, Progress
from schemas.manifest import Manifest
from schemas.process import unix_time


@dataclass(frozen=True)
class RunStatus:
    """The manifest, what each stage's worker last said, and how many previews there are."""

    manifest: Manifest
    progress: dict[str, Progress]
    previews: int

    def as_json(self) -> dict[str, Any]:
        return {
            "finished": self.manifest.finished(),
            "previews": self.previews,
            "manifest": self.manifest.model_dump(mode="json"),
            "progress": {name: progress.model_dump(mode="json") for name, progress in self.progress.items()},
        }

    def as_table(self) -> RunTable:
        return run_table(self.manifest, self.progress, unix_time(), self.previews)


def read_status(run_dir: str | Path) -> RunStatus:
    """The status of the run in `run_dir`; UserError if there is none."""
    directory = RunDirectory(run_dir)
    manifest = directory.read()
    progress, files = {}, {name: directory.fetch(f"{name}/{PROGRESS_FILE}") for name in manifest.stages}
    for name in manifest.stages:
        with suppress(OSError, ValueError):  # not there, or not as written: at work, the next one comes in a second
            progress[name] = Progress.model_validate_json(files[name].read_text())
    return RunStatus(manifest, progress, directory.previews())
