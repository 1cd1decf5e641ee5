"""A run, or other work of several jobs, as a table that fits the terminal, with words below; a run's status."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from ebdiff_orchestrator.run.time_left import Reports, duration, stage_left, trainings_left
from schemas.process import unix_time
from schemas.stage_names import is_draw

if TYPE_CHECKING:  # the schemas take a third of a second, and a command's help has a view, too
    from schemas.job import Progress
    from schemas.manifest import Manifest, StageRecord

HEARD_OF_S = 60.0  # a worker at work says something every second or so
_STYLES = {"done": "green", "failed": "bold red", "silent": "yellow", "pending": "dim", "stopped": "yellow"}
_MOST_WORDS = 400  # of why a stage failed; all of them are in its failure.json


class Row(NamedTuple):
    """One job or stage. `steps`: of one that is done; `progress`: of one that is at work; `words`: for below."""

    name: str
    state: str
    steps: int = 0
    progress: Progress | None = None
    words: str = ""


class _Layout(NamedTuple):
    """How wide bars are, and which columns there are beside the first four."""

    bar_width: int
    with_loss: bool = True
    with_rate: bool = True


_LAYOUTS = (_Layout(24), _Layout(12), _Layout(6), _Layout(0), _Layout(0, with_loss=False), _Layout(0, False, False))


@dataclass(frozen=True)
class RunTable:
    """The rows in the widest layout that fits: narrow terminals have shorter bars, below 70 columns fewer columns."""

    rows: Sequence[Row]
    title: str = ""
    caption: str = ""
    heading: str = "stage"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text(self.title, style="bold")
        tables = (self._table(layout) for layout in _LAYOUTS)
        wide = options.update(max_width=10_000)
        yield next((t for t in tables if console.measure(t, options=wide).maximum <= options.max_width), self._table())
        lines = [Text(line, overflow="fold") for line in self._lines()]
        yield from ([Text(), *lines] if lines else [])

    def _table(self, layout: _Layout = _LAYOUTS[-1]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for name in (self.heading, "state"):
            table.add_column(name, overflow="fold")
        table.add_column("step", justify="right", overflow="fold")
        table.add_column("progress", overflow="fold", min_width=layout.bar_width + 6)
        for name, there in (("loss", layout.with_loss), ("steps/s", layout.with_rate)):
            if there:
                table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(*_cells(row, layout))
        return table

    def _lines(self) -> Iterator[str]:
        thresholds = {row.progress.mask_threshold for row in self.rows if row.progress and row.progress.mask_distances}
        if thresholds:
            limit = max(filter(None, thresholds))
            yield f"Draws: largest distance in the queue of masks; a ticket at {limit:g} or less."
        for words in dict.fromkeys(row.words for row in self.rows if row.words):
            yield f"{', '.join(row.name for row in self.rows if row.words == words)}: {words}"
        if self.caption:
            yield self.caption


def _cells(row: Row, layout: _Layout) -> Iterator[RenderableType]:
    progress = row.progress
    yield Text(row.name)
    yield Text(row.state, style=_STYLES.get(row.state.split()[0], "cyan") if row.state else "")
    yield step_text(progress) if progress else str(row.steps or "")
    yield _bar(progress, layout.bar_width) if progress else ""
    if layout.with_loss:
        yield "" if progress is None or progress.loss is None else f"{progress.loss:.4g}"
    if layout.with_rate:
        yield "" if progress is None or progress.steps_per_s is None else f"{progress.steps_per_s:.2f}"


def _bar(progress: Progress, width: int) -> Text:
    """Of a training how much is done; of a draw the mask distance, the bar full where it is down at the threshold."""
    if progress.mask_distances and progress.mask_threshold:
        distance = max(progress.mask_distances.values())
        share, number = min(1.0, progress.mask_threshold / max(distance, 1e-9)), f"{distance:.3f}"
    elif progress.total_steps and not is_draw(progress.stage) and progress.state != "starting":
        share = progress.step / progress.total_steps
        number = f"{int(100 * share):3d}%"
    else:
        return Text()
    full = int(width * share)
    style = "magenta" if is_draw(progress.stage) else "green"
    return Text.assemble(("█" * full, style), ("░" * (width - full), "dim"), " " if width else "", number)


def run_table(manifest: Manifest, reports: Reports, now: float, previews: int, caption: str = "") -> RunTable:
    """The table of a run. `reports`: by stage, what each worker said last; `previews`: how many there are."""
    heard = {name: report for name, report in reports.items() if now - report.updated_at < HEARD_OF_S}
    open_stages = {name for name, record in manifest.stages.items() if record.status in ("pending", "running")}
    at_work = {n: report for n, report in heard.items() if n in open_stages and report.state != "stopped"}
    rows = [_stage_row(record, reports.get(record.name), now) for record in manifest.stages.values()]
    done = sum(record.status == "done" for record in manifest.stages.values())
    parts = [f"{done} of {len(rows)} stages done"]
    draw_steps = next((report.total_steps for name, report in reports.items() if is_draw(name)), None)
    left = trainings_left(manifest, at_work, draw_steps)
    parts += [f"training {left} left"] if left is not None else []
    parts += [f"{previews} preview{'' if previews == 1 else 's'}"] if previews else []
    again = [f"{record.name} {record.attempts}" for record in manifest.stages.values() if record.attempts > 1]
    captions = [f"Attempts, where more than one: {', '.join(again)}."] if again else []
    captions += [caption] if caption else []
    return RunTable(rows, f"run {manifest.plan.name}: {', '.join(parts)}", "\n".join(captions))


@dataclass(frozen=True)
class RunStatus:
    """What `ebdiff status` shows: the manifest, what each stage's worker said last, and how many previews there are."""

    manifest: Manifest
    progress: Reports
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
    from ebdiff_orchestrator.run.run_directory import RunDirectory
    from region_workers.storage.integrity import read_if_whole
    from schemas.job import PROGRESS_FILE, Progress

    directory = RunDirectory(run_dir)
    manifest = directory.read()
    files = {name: directory.fetch(f"{name}/{PROGRESS_FILE}") for name in manifest.stages}
    found = {name: read_if_whole(Progress, file) for name, file in files.items()}
    progress = {name: said for name, said in found.items() if said is not None}
    return RunStatus(manifest, progress, directory.previews())


def _stage_row(record: StageRecord, progress: Progress | None, now: float) -> Row:
    if record.status == "done":
        return Row(record.name, f"done in {duration(record.active_s)}", record.steps)
    if record.status == "failed":
        return Row(record.name, "failed", words=_short(record.error or ""))
    silent_s = now - progress.updated_at if progress else 0.0
    if progress is not None and silent_s < HEARD_OF_S and (record.status == "running" or record.attempts):
        return job_row(record.name, progress)
    if record.status == "running":
        return Row(record.name, f"silent {duration(silent_s)}" if progress else "running")
    if record.error == "stopped":
        return Row(record.name, "stopped")
    return Row(record.name, "starting" if record.attempts and not record.error else "pending", words=record.error or "")


def job_row(name: str, progress: Progress) -> Row:
    words = "" if progress.mask_distances and len(progress.mask_distances) == 1 else progress.note
    left = stage_left(progress) if progress.state == "running" else None
    return Row(name, f"{left} left" if left else progress.state, progress=progress, words=words)


def step_text(progress: Progress) -> str:
    """Such as `250/1000`; of a draw, which ends when its ticket appears, `250`."""
    if progress.state == "starting":
        return ""
    whole = progress.total_steps and not is_draw(progress.stage)
    return f"{progress.step}/{progress.total_steps}" if whole else str(progress.step)


def _short(error: str) -> str:
    return error if len(error) <= _MOST_WORDS else f"{error[:_MOST_WORDS]} ..."
