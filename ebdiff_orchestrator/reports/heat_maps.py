"""Heat maps of distances between masks: as a table in a terminal, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table
from rich.text import Text

from ebdiff_orchestrator.reports.masks import Distances

Colour = tuple[int, int, int]

_NEAR, _MIDDLE, _FAR = np.array([255, 250, 220]), np.array([240, 120, 60]), np.array([90, 10, 60])
_SIDE, _LEFT, _TOP, _RIGHT, _BOTTOM = 360, 64, 40, 92, 52  # pixels
_INK: Colour = (20, 20, 20)
_TICKS = 8


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
