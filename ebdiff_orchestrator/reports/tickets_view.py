"""How `ebdiff tickets` shows its report: tables in a terminal, CSV files and pictures in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

from ebdiff_orchestrator.reports.formats import as_csv, plain_table, say
from ebdiff_orchestrator.reports.heat_maps import evenly_chosen, heat_picture, heat_table, side_by_side
from ebdiff_orchestrator.reports.mask_moves_picture import moves_picture
from ebdiff_orchestrator.reports.mask_moves_view import moves_as_csv, show_moves
from ebdiff_orchestrator.reports.tickets import Difference, TicketReport, TicketsReport
from region_workers.storage.durable import write_file, write_text
from schemas.errors import user_error

_COLUMN_WIDTH, _LABEL_WIDTH, _MOST_COLUMNS = 4, 8, 32
_DIFFERENCES_EXPLAINED = (
    "distance: share of bits that differ. shared: of the channels that the smaller ticket keeps, those that the larger "
    "one keeps too; by chance: what that would be for unrelated tickets."
)


def show(report: TicketsReport, console: Console, last: int | None) -> None:
    """Print the report: of each ticket its distances and when it would have been drawn, the differences, the moves."""
    columns = max(4, min((console.width - _LABEL_WIDTH) // _COLUMN_WIDTH, _MOST_COLUMNS))
    for ticket in report.tickets:
        say(console, _headline(ticket), style="bold")
        _show_distances(ticket, console, columns, last)
        _show_would_be_drawn(ticket, console)
        console.print()
    if report.differences:
        say(console, "How the tickets differ:")
        console.print(_differences(report.differences))
        say(console, _DIFFERENCES_EXPLAINED)
    show_moves(report.moves, console, last)
    for note in report.notes:
        say(console, note)


def write_report(report: TicketsReport, folder: Path, last: int | None) -> list[Path]:
    """Write for each ticket REGION.csv (its distances; intervals head rows and columns) and REGION.png.

    For each sparse region REGION-weights.csv (a row for each layer and update) and REGION-weights.png.
    """
    check_out(folder)
    written = []
    for ticket in report.tickets:
        path = folder / f"{ticket.masks.region}.csv"
        write_text(path, _as_csv(ticket, last))
        written += [path, _write_picture([_heat_picture(ticket, last)], path.with_suffix(".png"))]
    for moves in report.moves:
        path = folder / f"{moves.region}-weights.csv"
        write_text(path, moves_as_csv(moves))
        written += [path, _write_picture([moves_picture(moves)], path.with_suffix(".png"))]
    return written


def draw_pictures(report: TicketsReport, file: Path, last: int | None) -> Path:
    """Write the tickets' heat maps and the figures of masks that move, side by side, as one PNG."""
    heat_maps = [_heat_picture(ticket, last) for ticket in report.tickets]
    return _write_picture([*heat_maps, *(moves_picture(moves) for moves in report.moves)], file)


def _heat_picture(ticket: TicketReport, last: int | None) -> Image.Image:
    intervals, distances = ticket.newest(last)
    return heat_picture(distances, intervals, f"{ticket.masks.region} at {ticket.masks.pruning_ratio:.0%}")


def _write_picture(pictures: Sequence[Image.Image], file: Path) -> Path:
    picture = side_by_side(pictures)
    write_file(file, lambda temporary: picture.save(temporary, format="PNG"))
    return file


def check_out(folder: Path) -> None:
    """Raise UserError if `folder` is a file."""
    if folder.exists() and not folder.is_dir():
        raise user_error("--out", folder, "a folder, new or not", "It is a file; name another.")


def _headline(ticket: TicketReport) -> str:
    masks = ticket.masks
    text = f"ticket {masks.region} ({masks.pruning_ratio:.0%}): {len(masks)} masks of {masks.bits} bits"
    if masks.ticket is None:
        return f"{text}, not drawn yet" if not masks.finished else text
    how = "drawn" if masks.ticket.converged else "taken, not converged,"
    distances = ", ".join(f"{distance:.3f}" for distance in masks.ticket.distances)
    return f"{text}, {how} at interval {masks.ticket.interval} (step {masks.ticket.step}), distances {distances}"


def _show_distances(ticket: TicketReport, console: Console, columns: int, last: int | None) -> None:
    intervals, distances = ticket.newest(last)
    chosen = evenly_chosen(len(intervals), columns)
    sampled = "" if len(chosen) == len(intervals) else f" ({len(chosen)} of {len(intervals)} intervals, evenly chosen)"
    say(console, f"Distance between the masks of two intervals{sampled}:")
    console.print(heat_table(distances[chosen][:, chosen], [intervals[position] for position in chosen]))


def _show_would_be_drawn(ticket: TicketReport, console: Console) -> None:
    count = len(ticket.masks)
    thresholds = sorted({item.threshold for item in ticket.would_be_drawn})
    table = plain_table(
        ("queue", "stride", *(f"threshold {threshold:g}" for threshold in thresholds)), left=(), no_wrap=True
    )
    too_long = []
    for length, stride in dict.fromkeys((item.queue_length, item.queue_stride) for item in ticket.would_be_drawn):
        needed = (length - 1) * stride + 1
        if needed > count:
            too_long.append(f"{length} at stride {stride} ({needed})")
            continue
        items = [i for i in ticket.would_be_drawn if (i.queue_length, i.queue_stride) == (length, stride)]
        cells = ["-" if item.interval is None else f"{item.interval} ({item.step})" for item in items]
        table.add_row(str(length), str(stride), *cells)
    say(console, f"Would be drawn at interval (step); -: not within the {count} recorded masks:")
    console.print(table)
    if too_long:
        say(console, f"Queues that need more masks than that: {', '.join(too_long)}.")


def _differences(differences: tuple[Difference, ...]) -> Table:
    table = plain_table(("ticket", "and", "distance", "shared", "by chance"), left=("ticket", "and"))
    for item in differences:
        table.add_row(item.a, item.b, f"{item.distance:.3f}", f"{item.overlap:.1%}", f"{item.larger_keeps:.1%}")
    return table


def _as_csv(ticket: TicketReport, last: int | None) -> str:
    intervals, distances = ticket.newest(last)
    texts = [[f"{value:.6f}" for value in row] for row in distances]
    rows = zip(intervals, texts, strict=True)
    return as_csv(
        [{"interval": interval, **dict(zip(map(str, intervals), row, strict=True))} for interval, row in rows]
    )
