"""What a person sees of a run: a live table in a terminal, plain rate-limited lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from rich.console import Console, RenderableType
from rich.live import Live

from ebdiff_orchestrator.run.run_table import RunTable, job_row, run_table, step_text
from ebdiff_orchestrator.run.time_left import stage_left
from schemas.process import unix_time

if TYPE_CHECKING:  # the schemas take a third of a second, and a command's help has a view, too
    from schemas.job import Progress, ProgressState
    from schemas.manifest import Manifest


class View:
    """What the driver tells while it works. This one says nothing: for the Python API."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def line(self, text: str) -> None:
        """Something happened."""

    def waiting(self, text: str) -> None:
        """Something is being waited for; may be called often."""

    def images(self, done: int, total: int, what: str = "decoding images") -> None:
        """Images or drawings are being made ready."""

    def job(self, name: str, progress: Progress) -> None:
        """Where a job stands; may be said often."""

    def run(self, manifest: Manifest) -> None:
        """Where the run that the jobs belong to stands; may be said often."""

    def previews(self, count: int) -> None:
        """How many previews the run has by now."""


class Lines(View):
    """A line for what happens, and at most one every so many seconds for each thing that goes on."""

    every_s = 15.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said_at: dict[str, float] = {}
        self._began = time.monotonic()

    def line(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        self._console.print(f"[{minutes:02d}:{seconds:02d}] {text}", markup=False, highlight=False, soft_wrap=True)

    def waiting(self, text: str) -> None:
        self._sometimes("waiting", text)

    def images(self, done: int, total: int, what: str = "decoding images") -> None:
        self._sometimes("images", f"{what}: {done} of {total or '?'}")

    def job(self, name: str, progress: Progress) -> None:
        if progress.state != "starting":
            self._sometimes(name, f"{name}: {_in_words(progress)}")

    def _sometimes(self, topic: str, text: str) -> None:
        now = time.monotonic()
        if now - self._said_at.get(topic, -self.every_s) >= self.every_s:
            self._said_at[topic] = now
            self.line(text)


class LiveTable(View):
    """A table that follows every job, under the lines of what happened."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._jobs: dict[str, Progress] = {}
        self._stages: dict[str, Progress] = {}
        self._manifest: Manifest | None = None
        self._previews = 0
        self._status = ""
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status = ""
        self._live.stop()

    def line(self, text: str) -> None:
        self._status = ""
        self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def waiting(self, text: str) -> None:
        self._status = text

    def images(self, done: int, total: int, what: str = "decoding images") -> None:
        self._status = f"{what}: {done} of {total or '?'}"

    def job(self, name: str, progress: Progress) -> None:
        self._status = ""
        self._jobs = {**self._jobs, name: progress}  # another thread draws the old ones
        self._stages = {**self._stages, progress.stage: progress}

    def run(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def previews(self, count: int) -> None:
        self._previews = count

    def _render(self) -> RenderableType:
        if self._manifest is not None:
            return run_table(self._manifest, self._stages, unix_time(), self._previews, self._status)
        rows = [job_row(name, progress) for name, progress in self._jobs.items()]
        return RunTable(rows, caption=self._status, heading="job") if rows else self._status


def terminal_view() -> View:
    console = Console()
    return LiveTable(console) if console.is_terminal else Lines(console)


def sampling_report(view: View) -> Callable[[int, int], None]:
    """A `report(done, total)` for sampling that shows on a view."""
    from schemas.job import Progress

    began = time.monotonic()

    def report(done: int, total: int) -> None:
        rate = done / max(time.monotonic() - began, 1e-9)
        state: ProgressState = "done" if done == total else "running"
        steps = {"step": done, "total_steps": total, "steps_per_s": rate}
        view.job("sampling", Progress(stage="samples", state=state, updated_at=unix_time(), **steps))

    return report


def _in_words(progress: Progress) -> str:
    left = stage_left(progress) if progress.state == "running" else None
    parts = [progress.stage, f"step {step_text(progress)}"]
    parts += [] if progress.loss is None else [f"loss {progress.loss:.4g}"]
    parts += [] if progress.steps_per_s is None else [f"{progress.steps_per_s:.2f} steps/s"]
    parts += [f"{left} left"] if left else []
    parts += [progress.note] if progress.note else []
    return ", ".join(parts)
