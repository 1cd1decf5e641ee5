"""How `ebdiff tickets` shows its report: tables in a terminal, CSV files and pictures in a folder."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ebdiff_orchestrator.reports.formats import as_csv, evenly_chosen, plain_table, say
from ebdiff_orchestrator.reports.mask_moves import RecordedMoves
from ebdiff_orchestrator.reports.masks import Distances
from ebdiff_orchestrator.reports.page.curves import draw_distances, draw_layers, draw_moves
from ebdiff_orchestrator.reports.page.svg import write_picture
from ebdiff_orchestrator.reports.tickets import Difference, TicketReport, TicketsReport
from region_workers.storage.durable import write_text
from region_workers.storage.places import check_no_url
from schemas.errors import user_error

_COLOURS = np.array([[255, 250, 220], [240, 120, 60], [90, 10, 60]])  # of shares of 0, 0.5 and 1
_LEAST_COLUMN_WIDTH, _LABEL_WIDTH, _MOST_COLUMNS = 4, 8, 32
_DIFFERENCES_EXPLAINED = (
    "distance: share of bits that differ. shared: of the channels that the smaller ticket keeps, those that the larger "
    "one keeps too; by chance: what that would be for unrelated tickets."
)
_MOST_ROWS = 16
_MEASURES = ("exchanged", "replaced", "distance", "ever_kept")
_MOVES_EXPLAINED = (
    "exchanged: of the kept weights, those that an update took for others (by layer: all updates together). replaced: "
    "of those that the first mask kept, those that are kept no more. distance: the share of bits that differ from the "
    "first mask. ever kept: of all weights of the masked layers. Layers that keep everything have no mask."
)


def show(report: TicketsReport, console: Console, last: int | None) -> None:
    """Print the report: of each ticket its distances and when it would have been drawn, the differences, the moves."""
    for ticket in report.tickets:
        say(console, _headline(ticket), style="bold")
        _show_distances(ticket, console, last)
        _show_would_be_drawn(ticket, console)
        console.print()
    if report.differences:
        say(console, "How the tickets differ:")
        console.print(_differences(report.differences))
        say(console, _DIFFERENCES_EXPLAINED)
    _show_moves(report.moves, console, last)
    for note in report.notes:
        say(console, note)


def write_report(report: TicketsReport, folder: Path, last: int | None) -> list[Path]:
    """Write for each ticket REGION.csv (its distances; intervals head rows and columns) and REGION.png.

    For each sparse region REGION-weights.csv (a row for each layer and update) and REGION-weights.png.
    """
    check_out(folder)
    texts = {f"{ticket.masks.region}.csv": _as_csv(ticket, last) for ticket in report.tickets}
    texts |= {f"{moves.region}-weights.csv": _moves_as_csv(moves) for moves in report.moves}
    written = []
    for (name, text), figures in zip(texts.items(), _figures(report, last), strict=True):
        path = folder / name
        write_text(path, text)
        write_picture(path.with_suffix(".png"), [figures])
        written += [path, path.with_suffix(".png")]
    return written


def draw_pictures(report: TicketsReport, file: Path, last: int | None) -> Path:
    """Write the tickets' heat maps and the figures of masks that move, side by side, as one PNG."""
    write_picture(file, _figures(report, last))
    return file


def _figures(report: TicketsReport, last: int | None) -> list[list[Callable[[Any], None]]]:
    """Of each ticket one, then of each sparse region two."""
    figures: list[list[Callable[[Any], None]]] = []
    for ticket in report.tickets:
        figures.append([partial(draw_distances, report=ticket, last=last)])
    for moves in report.moves:
        figures.append([partial(draw_moves, moves=moves), partial(draw_layers, moves=moves)])
    return figures


def check_out(folder: Path) -> None:
    """Raise UserError if `folder` is a URL or a file."""
    check_no_url(folder, "--out")
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


def _show_distances(ticket: TicketReport, console: Console, last: int | None) -> None:
    intervals, distances = ticket.newest(last)
    width = max(_LEAST_COLUMN_WIDTH, len(f" {intervals[-1]}"))
    columns = max(4, min((console.width - _LABEL_WIDTH) // width, _MOST_COLUMNS))
    chosen, how = _chosen(len(intervals), columns, " intervals")
    say(console, f"Distance between the masks of two intervals{how}:")
    console.print(_heat_table(distances[chosen][:, chosen], [intervals[position] for position in chosen], width))


def _heat_table(distances: Distances, intervals: Sequence[int], width: int) -> Table:
    """Distances [n, n] in hundredths, coloured by their share of the largest; rows and columns are intervals."""
    table = Table(show_edge=False, pad_edge=False, box=None, padding=0)
    table.add_column("", justify="right")
    for interval in intervals:
        table.add_column(str(interval), justify="right", no_wrap=True, width=width)
    colours = _colours(distances / (float(distances.max(initial=0.0)) or 1.0))
    for interval, row, row_colours in zip(intervals, distances, colours.tolist(), strict=True):
        cells = (f"{value:.2f}".replace("0.", ".", 1).rjust(width) for value in row)
        table.add_row(f"{interval} ", *map(_heat_cell, cells, row_colours))
    return table


def _heat_cell(text: str, colour: list[int]) -> Text:
    ink = "black" if sum(colour) > 300 else "white"
    return Text(text, style=f"{ink} on rgb({','.join(map(str, colour))})")


def _colours(shares: Distances) -> npt.NDArray[np.uint8]:
    """0: pale, 1: dark; [rows, columns, 3]."""
    channels = [np.interp(shares, (0, 0.5, 1), channel) for channel in _COLOURS.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


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
        shares = (f"{item.distance:.3f}", f"{item.overlap:.1%}", f"{item.larger_keeps:.1%}")
        table.add_row(Text(item.a), Text(item.b), *shares)
    return table


def _as_csv(ticket: TicketReport, last: int | None) -> str:
    intervals, distances = ticket.newest(last)
    texts = [[f"{value:.6f}" for value in row] for row in distances]
    rows = zip(intervals, texts, strict=True)
    return as_csv(
        [{"interval": interval, **dict(zip(map(str, intervals), row, strict=True))} for interval, row in rows]
    )


def _show_moves(found: tuple[RecordedMoves, ...], console: Console, last: int | None) -> None:
    """Print of each region how its masks have moved, and how dense its layers are."""
    for moves in found:
        say(console, _headline_of_moves(moves), style="bold")
        if len(moves.steps) > 1:
            _show_over_time(moves, console, last)
        _show_layers(moves, console)
        console.print()
    if found:
        say(console, _MOVES_EXPLAINED)


def _headline_of_moves(moves: RecordedMoves) -> str:
    """Such as `weights of all (rigl 60%): 71,000 of 179,000 kept in 19 masked layers, 3 updates up to step 6`."""
    counts = f"{moves.kept.sum():,} of {moves.weights.sum():,} kept in {len(moves.layers)} masked layers"
    updates = len(moves.steps) - 1
    moved = f"{updates} updates up to step {moves.steps[-1]}" if updates else "no update"
    state = "" if moves.finished else "; it trains on"
    return f"weights of {moves.region} ({moves.plan.method} {moves.plan.sparsity:.0%}): {counts}, {moved}{state}"


def _moves_as_csv(moves: RecordedMoves) -> str:
    """A row for each layer and mask, in numbers of weights."""
    return as_csv(
        [
            {
                "step": int(step),
                "layer": layer,
                "weights": int(moves.weights[index]),
                "kept": int(moves.kept[index]),
                "exchanged": int(moves.exchanged[mask, index]),
                "replaced": int(moves.replaced[mask, index]),
                "ever_kept": int(moves.ever_kept[mask, index]),
            }
            for mask, step in enumerate(moves.steps)
            for index, layer in enumerate(moves.layers)
        ]
    )


def _show_over_time(moves: RecordedMoves, console: Console, last: int | None) -> None:
    shares, count = moves.over_time(), len(moves.steps)
    first = max(0, count - last) if last else 0
    rows, how = _chosen(count - first, _MOST_ROWS)
    say(console, f"Masks after each update{how}; {moves.replaced_by_chance():.1%} would be replaced by chance:")
    table = plain_table(("step", *(name.replace("_", " ") for name in _MEASURES)), left=(), no_wrap=True)
    for row in rows:
        table.add_row(str(moves.steps[first + row]), *(f"{shares[name][first + row]:.1%}" for name in _MEASURES))
    console.print(table)


def _show_layers(moves: RecordedMoves, console: Console) -> None:
    shares = moves.by_layer()
    rows, how = _chosen(len(moves.layers), _MOST_ROWS)
    say(console, f"Layers{how}:")
    headings = ("layer", "weights", *(name.replace("_", " ") for name in shares))
    table = plain_table(headings, left=("layer",), no_wrap=True)
    for column in table.columns[1:]:
        column.min_width = len(max(headings[1:], key=len))
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"  # its end tells layers apart
    for row in rows:
        cells = (f"{share[row]:.1%}" for share in shares.values())
        table.add_row(moves.layers[row].removesuffix(".weight"), f"{moves.weights[row]:,}", *cells)
    console.print(table)


def _chosen(count: int, most: int, noun: str = "") -> tuple[list[int], str]:
    """At most so many of `count` positions, evenly spread, and what to say of it if they are not all."""
    chosen = evenly_chosen(count, most)
    return chosen, "" if len(chosen) == count else f" ({len(chosen)} of {count}{noun}, evenly chosen)"
