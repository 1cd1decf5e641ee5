"""How `ebdiff tickets` shows its report: tables in a terminal, CSV files and heat maps in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ebdiff_orchestrator.reports.formats import as_csv, plain_table, say
from ebdiff_orchestrator.reports.masks import Distances
from ebdiff_orchestrator.reports.tickets import Difference, TicketReport, TicketsReport
from region_workers.storage.durable import write_file, write_text
from schemas.errors import user_error

_COLUMN_WIDTH, _LABEL_WIDTH, _MOST_COLUMNS = 4, 8, 32
_DIFFERENCES_EXPLAINED = (
    "distance: share of bits that differ. shared: of the channels that the smaller ticket keeps, those that the larger "
    "one keeps too; by chance: what that would be for unrelated tickets."
)
Colour = tuple[int, int, int]

_NEAR, _MIDDLE, _FAR = np.array([255, 250, 220]), np.array([240, 120, 60]), np.array([90, 10, 60])
_SIDE, _LEFT, _TOP, _RIGHT, _BOTTOM = 360, 64, 40, 92, 52  # pixels
_INK: Colour = (20, 20, 20)
_TICKS = 8


def show(report: TicketsReport, console: Console, last: int | None) -> None:
    """Print the report: for each ticket its distances and when it would have been drawn, then the differences."""
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
    for note in report.notes:
        say(console, note)


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
        intervals, distances = ticket.newest(last)
        title = f"{ticket.masks.region} at {ticket.masks.pruning_ratio:.0%}"
        pictures.append(heat_picture(distances, intervals, title))
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


def evenly_chosen(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` positions, evenly spread, the first and the last among them."""
    if count <= limit:
        return list(range(count))
    return sorted({round(index * (count - 1) / (limit - 1)) for index in range(limit)})


def heat_table(distances: Distances, intervals: Sequence[int]) -> Table:
    """Distances [n, n] in hundredths, coloured by their share of the largest; rows and columns are intervals."""
    table = Table(show_edge=False, pad_edge=False, box=None, padding=0)
    table.add_column("", justify="right")
    for interval in intervals:
        table.add_column(f"{interval:>4}", justify="right", no_wrap=True)
    largest = _largest(distances)
    for interval, row in zip(intervals, distances, strict=True):
        table.add_row(f"{interval} ", *(_cell(float(value), largest) for value in row))
    return table


def heat_picture(distances: Distances, intervals: Sequence[int], title: str) -> Image.Image:
    """Distances [n, n] as an RGB picture with the intervals on both axes and a scale."""
    picture = Image.new("RGB", (_LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((_LEFT, 12), title, fill=_INK, font=ImageFont.load_default(15))
    largest = _largest(distances)
    cells = Image.fromarray(_colours(distances / largest))
    enlarged = Image.Resampling.NEAREST if len(distances) <= _SIDE else Image.Resampling.BOX
    picture.paste(cells.resize((_SIDE, _SIDE), enlarged), (_LEFT, _TOP))
    pen.rectangle((_LEFT - 1, _TOP - 1, _LEFT + _SIDE, _TOP + _SIDE), outline=_INK)
    _label_axes(pen, intervals)
    _draw_scale(picture, pen, largest)
    return picture


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one height in a row."""
    joined = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), "white")
    left = 0
    for picture in pictures:
        joined.paste(picture, (left, 0))
        left += picture.width
    return joined


def _label_axes(pen: ImageDraw.ImageDraw, intervals: Sequence[int]) -> None:
    font = ImageFont.load_default(12)
    for position in evenly_chosen(len(intervals), _TICKS):
        middle = (position + 0.5) * _SIDE / len(intervals)
        pen.text((_LEFT + middle, _TOP + _SIDE + 6), str(intervals[position]), fill=_INK, font=font, anchor="mt")
        pen.text((_LEFT - 6, _TOP + middle), str(intervals[position]), fill=_INK, font=font, anchor="rm")
    pen.text((_LEFT + _SIDE / 2, _TOP + _SIDE + 28), "interval", fill=_INK, font=font, anchor="mt")
    pen.text((4, _TOP - 22), "interval", fill=_INK, font=font)


def _draw_scale(picture: Image.Image, pen: ImageDraw.ImageDraw, largest: float) -> None:
    font, left = ImageFont.load_default(12), _LEFT + _SIDE + 16
    ramp = np.repeat(np.linspace(1, 0, _SIDE)[:, None], 14, axis=1)
    picture.paste(Image.fromarray(_colours(ramp)), (left, _TOP))
    for share in (0.0, 0.5, 1.0):
        pen.text((left + 20, _TOP + (1 - share) * _SIDE), f"{share * largest:.3f}", fill=_INK, font=font, anchor="lm")
    pen.text((left - 6, _TOP - 22), "distance", fill=_INK, font=font)


def _cell(value: float, largest: float) -> Text:
    red, green, blue = _colours(np.array([[value / largest]]))[0, 0].tolist()
    ink = "black" if red + green + blue > 300 else "white"
    return Text(f" {value:.2f}".replace("0.", ".", 1), style=f"{ink} on rgb({red},{green},{blue})")


def _largest(distances: Distances) -> float:
    return float(distances.max(initial=0.0)) or 1.0


def _colours(shares: Distances) -> npt.NDArray[np.uint8]:
    """0: pale, 1: dark; [rows, columns, 3]."""
    shares = shares[..., None]
    low = _NEAR + (_MIDDLE - _NEAR) * np.minimum(shares * 2, 1)
    colours: npt.NDArray[np.float64] = low + (_FAR - _MIDDLE) * np.maximum(shares * 2 - 1, 0)
    return colours.round().astype(np.uint8)
