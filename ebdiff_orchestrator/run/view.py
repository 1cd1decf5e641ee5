"""What a person sees of a run: a live table in a terminal, plain rate-limited lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:  # the schemas take a third of a second, and a command's help has a view, too
    from schemas.job import Progress, ProgressState

_LINE_EVERY_S = 15.0


class View:
    """What the driver tells while it works. This one says nothing: for the Python API."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def line(self, text: str) -> None:
        """Something happened."""

    def waiting(self, text: str) -> None:
        """Something is being waited for; may be said often."""

    def images(self, done: int, total: int, what: str = "images") -> None:
        """Images are being decoded."""

    def job(self, name: str, progress: Progress) -> None:
        """Where a job stands; may be said often."""


class Lines(View):
    """A line for what happens, and at most one every 15 seconds for each thing that goes on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said_at: dict[str, float] = {}
        self._began = time.monotonic()

    def line(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        self._console.print(f"[{minutes:02d}:{seconds:02d}] {text}", markup=False, highlight=False, soft_wrap=True)

    def waiting(self, text: str) -> None:
        self._sometimes("waiting", text)

    def images(self, done: int, total: int, what: str = "images") -> None:
        self._sometimes("images", f"decoding {what}: {done} of {total or '?'}")

    def job(self, name: str, progress: Progress) -> None:
        if progress.state != "starting":
            self._sometimes(name, f"{name}: {_in_words(progress)}")

    def _sometimes(self, topic: str, text: str) -> None:
        now = time.monotonic()
        if now - self._said_at.get(topic, -_LINE_EVERY_S) >= _LINE_EVERY_S:
            self._said_at[topic] = now
            self.line(text)


class LiveTable(View):
    """A table that follows every job, under the lines of what happened."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._jobs: dict[str, Progress] = {}
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

    def images(self, done: int, total: int, what: str = "images") -> None:
        self._status = f"decoding {what}: {done} of {total or '?'}"

    def job(self, name: str, progress: Progress) -> None:
        self._status = ""
        self._jobs[name] = progress

    def _render(self) -> RenderableType:
        return progress_table(self._jobs, self._status) if self._jobs else self._status


def terminal_view() -> View:
    """The view that suits standard output."""
    console = Console()
    return LiveTable(console) if console.is_terminal else Lines(console)


def sampling_report(view: View) -> Callable[[int, int], None]:
    """A `report(done, total)` for sampling that shows on a view."""
    from schemas.job import Progress

    began = time.monotonic()

    def report(done: int, total: int) -> None:
        rate = done / max(time.monotonic() - began, 1e-9)
        state: ProgressState = "done" if done == total else "running"
        view.job("sampling", Progress(stage="samples", state=state, step=done, total_steps=total, steps_per_s=rate))

    return report


def progress_table(jobs: dict[str, Progress], caption: str = "") -> Table:
    """One row a job: stage, step, loss, steps/s, time left, and what its worker notes."""
    table = Table(caption=caption or None, show_edge=False, pad_edge=False)
    for heading in ("job", "stage", "step", "loss", "steps/s", "left", "note"):
        table.add_column(heading, justify="right" if heading in ("step", "loss", "steps/s", "left") else "left")
    for name, progress in jobs.items():
        table.add_row(name, progress.stage, *_cells(progress), progress.note)
    return table


def _cells(progress: Progress) -> tuple[str, str, str, str]:
    if progress.state == "starting":
        return "", "", "", "starting"
    total = f"/{progress.total_steps}" if progress.total_steps and not _is_draw(progress) else ""
    loss = "" if progress.loss is None else f"{progress.loss:.4g}"
    rate = "" if progress.steps_per_s is None else f"{progress.steps_per_s:.2f}"
    left = progress.state if progress.state in ("done", "stopped") else time_left(progress)
    return f"{progress.step}{total}", loss, rate, left


def time_left(progress: Progress) -> str:
    """hours:minutes:seconds to the stage's last step; a draw ends when it ends, so at most that."""
    if not progress.total_steps or not progress.steps_per_s:
        return ""
    seconds = int((progress.total_steps - progress.step) / progress.steps_per_s)
    text = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"≤ {text}" if _is_draw(progress) else text


def _is_draw(progress: Progress) -> bool:
    return progress.stage.startswith("draw/")


def _in_words(progress: Progress) -> str:
    step, loss, rate, left = _cells(progress)
    parts = [progress.stage, f"step {step}"]
    parts += [f"loss {loss}"] if loss else []
    parts += [f"{rate} steps/s"] if rate else []
    parts += [f"{left} left"] if left and progress.state == "running" else []
    parts += [progress.note] if progress.note else []
    return ", ".join(parts)
