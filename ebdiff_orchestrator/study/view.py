"""What a person sees of a study: a state for each run, the jobs at work, and the lines of all runs with their names."""

from collections.abc import Iterator
from threading import Lock

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ebdiff_orchestrator.run.run_table import HEARD_OF_S, RunTable, job_row
from ebdiff_orchestrator.run.view import Lines, LiveTable, View
from ebdiff_orchestrator.study.progress import DONE, FAILED, WAITS, Board, Seen, counts_of
from schemas.job import Progress
from schemas.manifest import Manifest
from schemas.process import unix_time

_STYLES = {DONE: "green", FAILED: "bold red", WAITS: "dim"}
_SAY_EVERY_S = 60.0  # how the study stands, in a log


class StudyView(View):
    """What is told of a study beside what is told of its runs. This one says nothing."""

    def board(self, board: Board) -> None:
        """Where the study stands; said every few seconds."""


class StudyLines(Lines, StudyView):
    """A line for what happens, and one a minute for how the study and each job stand."""

    every_s = _SAY_EVERY_S

    def board(self, board: Board) -> None:
        self._sometimes("board", f"{board}.")


class StudyTable(LiveTable, StudyView):
    """A table of rows by seeds and one of the jobs at work, under the lines of what happened."""

    def __init__(self, console: Console) -> None:
        self._board: Board | None = None  # the table is drawn once as it is made
        self._changing = Lock()
        super().__init__(console)

    def board(self, board: Board) -> None:
        self._board = board

    def job(self, name: str, progress: Progress) -> None:
        with self._changing:  # runs tell from threads of their own
            super().job(name, progress)

    def _render(self) -> RenderableType:
        now = unix_time()
        jobs = [
            job_row(name, progress)
            for name, progress in self._jobs.items()
            if progress.state in ("starting", "running") and now - progress.updated_at < HEARD_OF_S
        ]
        below = RunTable(jobs, caption=self._status, heading="run, job") if jobs else self._status
        if self._board is None:
            return below
        lines = self._console.height - len(jobs) - 9  # headings, empty lines and what is told below the jobs
        return Group(Text(str(self._board), style="bold"), *_grid(self._board, self._console, max(3, lines)), "", below)


def _grid(board: Board, console: Console, most_rows: int) -> Iterator[RenderableType]:
    """A column a seed where that fits, else how many runs of a row are done, at work, waiting and failed.

    Where the terminal is too low for all rows, those stay that are at work or have failed.
    """
    rows = dict(board.rows)
    if len(rows) > most_rows:
        busy = [label for label, states in rows.items() if {*states} - {DONE, WAITS}]
        rows = {label: rows[label] for label in busy[: most_rows - 1]}
    table = _table([f"seed {seed}" for seed in board.seeds], rows)
    if console.measure(table, options=console.options.update(max_width=10_000)).maximum > console.width:
        counts = {label: counts_of(states) for label, states in rows.items()}
        headings = list(board.counts)
        table = _table(headings, {label: tuple(str(n or "") for n in each.values()) for label, each in counts.items()})
    yield table
    if left_out := len(board.rows) - len(rows):
        yield Text(f"and {left_out} more rows: a higher terminal shows them, or `ebdiff study --table`.", style="dim")


def _table(headings: list[str], rows: dict[str, tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("row", overflow="fold")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for label, cells in rows.items():
        table.add_row(Text(label), *(Text(cell, style=_STYLES.get(cell, "cyan")) for cell in cells))
    return table


class RunView(View):
    """The view of one run of a study, which tells it what is to be seen; and what is seen of the run."""

    def __init__(self, run: str, shared: View, seen: Seen) -> None:
        self._run, self._shared, self._seen = run, shared, seen
        self.done_stages: frozenset[str] = frozenset()

    def line(self, text: str) -> None:
        self._shared.line(f"{self._run}: {text}")

    def images(self, done: int, total: int, what: str = "decoding images") -> None:
        self._shared.images(done, total, what)

    def job(self, name: str, progress: Progress) -> None:
        self._seen.reports = {**self._seen.reports, progress.stage: progress}  # another thread reads them
        self._shared.job(f"{self._run} {name}", progress)

    def run(self, manifest: Manifest) -> None:
        self._seen.manifest = manifest
        self.done_stages = frozenset(name for name, record in manifest.stages.items() if record.status == "done")


def study_view() -> View:
    """The view that suits standard output."""
    console = Console()
    return StudyTable(console) if console.is_terminal else StudyLines(console)
