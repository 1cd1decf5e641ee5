"""How `ebdiff tickets` shows its report: tables in a terminal, CSV files and pictures in a folder."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ebdiff_orchestrator.reports.heat_map import evenly_chosen, heat_picture, heat_table, side_by_side
from ebdiff_orchestrator.reports.tickets import Difference, TicketReport, TicketsReport
from region_workers.storage.durable import write_file, write_text
from schemas.errors import UserError, problem

_COLUMN_WIDTH, _LABEL_WIDTH, _MOST_COLUMNS = 4, 8, 32
_DIFFERENCES_EXPLAINED = (
    "distance: share of bits that differ. shared: of the channels that the smaller ticket keeps, those that the larger "
    "one keeps too; by chance: what that would be for unrelated tickets."
)


def show(report: TicketsReport, console: Console, last: int | None) -> None:
    """Print the report: for each ticket its distances and when it would have been drawn, then the differences."""
    columns = max(4, min((console.width - _LABEL_WIDTH) // _COLUMN_WIDTH, _MOST_COLUMNS))
    for ticket in report.tickets:
        _say(console, _headline(ticket), style="bold")
        _show_distances(ticket, console, columns, last)
        _show_would_be_drawn(ticket, console)
        console.print()
    if report.differences:
        _say(console, "How the tickets differ:")
        console.print(_differences(report.differences))
        _say(console, _DIFFERENCES_EXPLAINED)
    for note in report.notes:
        _say(console, note)


def write_report(report: TicketsReport, folder: Path, last: int | None) -> list[Path]:
    """Write for each ticket REGION.csv (its distances; intervals head rows and columns) and REGION.png."""
    check_out(folder)
    written = []
    for ticket in report.tickets:
        path = folder / f"{ticket.masks.region}.csv"
        write_text(path, _as_csv(ticket, last))
        written += [path, draw_pictures([ticket], folder / f"{ticket.masks.region}.png", last)]
    return written


def draw_pictures(tickets: tuple[TicketReport, ...] | list[TicketReport], file: Path, last: int | None) -> Path:
    """Write the tickets' heat maps, side by side, as one PNG."""
    pictures = []
    for ticket in tickets:
        shown = slice(-last if last else None, None)
        title = f"{ticket.masks.region} at {ticket.masks.pruning_ratio:.0%}"
        intervals = ticket.masks.intervals[shown].tolist()
        pictures.append(heat_picture(ticket.distances[shown, shown], intervals, title))
    picture = side_by_side(pictures)
    write_file(file, lambda temporary: picture.save(temporary, format="PNG"))
    return file


def check_out(folder: Path) -> None:
    """Raise UserError if `folder` is a file."""
    if folder.exists() and not folder.is_dir():
        raise UserError(problem("--out", folder, "a folder, new or not", "It is a file; name another."))


def _headline(ticket: TicketReport) -> str:
    masks = ticket.masks
    text = f"ticket {masks.region} ({masks.pruning_ratio:.0%}): {len(masks)} masks of {masks.bits} bits"
    if masks.ticket is None:
        return f"{text}, not drawn yet" if not masks.finished else text
    how = "drawn" if masks.ticket.converged else "taken, not converged,"
    distances = ", ".join(f"{distance:.3f}" for distance in masks.ticket.distances)
    return f"{text}, {how} at interval {masks.ticket.interval} (step {masks.ticket.step}), distances {distances}"


def _show_distances(ticket: TicketReport, console: Console, columns: int, last: int | None) -> None:
    count = len(ticket.masks)
    first = max(0, count - last) if last else 0
    chosen = [first + position for position in evenly_chosen(count - first, columns)]
    sampled = "" if len(chosen) == count - first else f" ({len(chosen)} of {count - first} intervals, evenly chosen)"
    _say(console, f"Distance between the masks of two intervals{sampled}:")
    console.print(heat_table(ticket.distances[chosen][:, chosen], ticket.masks.intervals[chosen].tolist()))


def _show_would_be_drawn(ticket: TicketReport, console: Console) -> None:
    count = len(ticket.masks)
    thresholds = sorted({item.threshold for item in ticket.would_be_drawn})
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("queue", "stride", *(f"threshold {threshold:g}" for threshold in thresholds)):
        table.add_column(heading, justify="right", no_wrap=True)
    too_long = []
    for length, stride in dict.fromkeys((item.queue_length, item.queue_stride) for item in ticket.would_be_drawn):
        needed = (length - 1) * stride + 1
        if needed > count:
            too_long.append(f"{length} at stride {stride} ({needed})")
            continue
        items = [i for i in ticket.would_be_drawn if (i.queue_length, i.queue_stride) == (length, stride)]
        cells = ["-" if item.interval is None else f"{item.interval} ({item.step})" for item in items]
        table.add_row(str(length), str(stride), *cells)
    _say(console, f"Would be drawn at interval (step); -: not within the {count} recorded masks:")
    console.print(table)
    if too_long:
        _say(console, f"Queues that need more masks than that: {', '.join(too_long)}.")


def _differences(differences: tuple[Difference, ...]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("ticket", "and", "distance", "shared", "by chance"):
        table.add_column(heading, justify="left" if heading in ("ticket", "and") else "right")
    for item in differences:
        table.add_row(item.a, item.b, f"{item.distance:.3f}", f"{item.overlap:.1%}", f"{item.larger_keeps:.1%}")
    return table


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False)


def _as_csv(ticket: TicketReport, last: int | None) -> str:
    shown = slice(-last if last else None, None)
    intervals = ticket.masks.intervals[shown].tolist()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["interval", *intervals])
    for interval, row in zip(intervals, ticket.distances[shown, shown], strict=True):
        writer.writerow([interval, *(f"{value:.6f}" for value in row)])
    return text.getvalue()
