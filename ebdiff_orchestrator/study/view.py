"""What a person sees of a study: the lines and the jobs of all its runs, each with its run's name."""

from __future__ import annotations

from threading import Lock

from rich.console import Console, RenderableType

from ebdiff_orchestrator.run.run_table import HEARD_OF_S, RunTable, job_row
from ebdiff_orchestrator.run.view import Lines, LiveTable, View
from schemas.job import Progress
from schemas.manifest import Manifest
from schemas.process import unix_time


class StudyTable(LiveTable):
    """A table of the jobs at work, under the lines of what happened."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._changing = Lock()

    def job(self, name: str, progress: Progress) -> None:
        with self._changing:  # runs tell from threads of their own, and another draws
            self._jobs = {**self._jobs, name: progress}

    def _render(self) -> RenderableType:
        now = unix_time()
        at_work = {
            name: progress
            for name, progress in self._jobs.items()
            if progress.state in ("starting", "running") and now - progress.updated_at < HEARD_OF_S
        }
        rows = [job_row(name, progress) for name, progress in at_work.items()]
        return RunTable(rows, caption=self._status, heading="run, job") if rows else self._status


class RunView(View):
    """The view of one run of a study, which tells it what is to be seen; and what the run has done."""

    def __init__(self, run: str, shared: View) -> None:
        self._run, self._shared = run, shared
        self.done_stages: frozenset[str] = frozenset()

    def line(self, text: str) -> None:
        self._shared.line(f"{self._run}: {text}")

    def images(self, done: int, total: int, what: str = "images") -> None:
        self._shared.images(done, total, what)

    def job(self, name: str, progress: Progress) -> None:
        self._shared.job(f"{self._run} {name}", progress)

    def run(self, manifest: Manifest) -> None:
        self.done_stages = frozenset(name for name, record in manifest.stages.items() if record.status == "done")


def study_view() -> View:
    """The view that suits standard output."""
    console = Console()
    return StudyTable(console) if console.is_terminal else Lines(console)
