"""Strokes to the rows that a network sees, and back, by the recipe of ChiroDiff (arXiv 2304.03785, and its released
code); and to pictures, black lines on white, as people see them and as measures do.

A stroke is float [n, 2], positions x, y of the pen with y downwards. Rows are float32 [L, 3]: x, y (or the step to them
from the row before), and 1 where a stroke ends, else 0; the first point of a drawing is the origin and has no row.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from schemas.data import Coordinates, DrawingsPlan, RasterPlan
from schemas.limits import LARGE

Stroke = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.float32]

# Raise it whenever `rows_of` gives other rows for the same strokes: stores of the older version are then built anew.
ROWS_VERSION = 1
_PEN_UP = 0.8  # a generated pen is a real number: above it, a stroke ends (the released code's)


class UnreadableDrawingError(ValueError):
    """What gives no drawing; the message says why."""


class LongDrawingError(ValueError):
    """A drawing of `max_points` or more."""


def rows_of(strokes: Sequence[Stroke], plan: DrawingsPlan) -> Rows:
    """The rows of a drawing: the origin at its first point, the farthest of its points `scale` away from there.

    Every stroke is resampled to points equally spaced along it. Raises UnreadableDrawingError if there is nothing to
    draw, LongDrawingError for too many points.
    """
    drawn = [stroke for stroke in strokes[: plan.max_strokes] if len(stroke) > 1]
    if not drawn:
        raise UnreadableDrawingError("it has no stroke of two points or more")
    points = np.concatenate(drawn).astype(np.float64, copy=False)
    if not (np.abs(points) <= LARGE).all():  # nor if it is no number
        raise UnreadableDrawingError(f"a coordinate is no number from {-LARGE:g} to {LARGE:g}")
    points -= points[0].copy()
    reach = np.sqrt(np.square(points).sum(axis=1)).max()
    if not reach > 0:
        raise UnreadableDrawingError("all its points are one")
    points /= reach
    points, ends = _resampled(points, np.cumsum([len(stroke) for stroke in drawn]), plan)
    rows = np.zeros((len(points) - 1, 3), np.float32)
    points *= plan.scale
    rows[:, :2] = points[1:] if plan.coordinates == "absolute" else np.diff(points, axis=0)
    rows[ends - 2, 2] = 1.0
    return rows


def strokes_of(rows_L3: npt.NDArray[Any], coordinates: Coordinates) -> list[npt.NDArray[np.float32]]:
    """The strokes of rows, stored or generated: float32 [n, 2] each, in the rows' scale; those of one point vanish."""
    points = np.zeros((len(rows_L3) + 1, 2), np.float32)
    if coordinates == "absolute":
        points[1:] = rows_L3[:, :2]
    else:
        points[1:] = np.cumsum(rows_L3[:, :2], axis=0, dtype=np.float64)
    ends = np.flatnonzero(np.asarray(rows_L3)[:, 2] > _PEN_UP) + 2
    return [stroke for stroke in np.split(points, ends) if len(stroke) > 1]


_FINER = 4  # drawn so many times as large and reduced, which smooths the lines
_WHITE, _BLACK = 255, 0


def raster(strokes: Sequence[Stroke], plan: RasterPlan) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 1]: the drawing fills the canvas but for its margins, centred; white if there is nothing to draw.

    Points that are no numbers, as a network may give them, are not drawn.
    """
    side, width = plan.canvas_px * _FINER, max(1, round(plan.line_width_px * _FINER))
    image = Image.new("L", (side, side), _WHITE)
    draw = ImageDraw.Draw(image)
    for stroke in placed(strokes, side, side * (1 - 2 * plan.margin) - width):
        corners = np.floor(stroke).astype(np.int64)
        draw.line(corners.ravel().tolist(), fill=_BLACK, width=width)
        for left, top in (corners - width // 2).tolist():  # round ends and corners
            draw.ellipse((left, top, left + width - 1, top + width - 1), fill=_BLACK)
    return np.array(image.reduce(_FINER))[:, :, None]


def placed(strokes: Sequence[Stroke], side: int, inner: float) -> list[npt.NDArray[np.float64]]:
    """The strokes in the middle of a square, the longer side of what they cover `inner` long; finite points alone."""
    finite = [stroke[np.isfinite(stroke).all(axis=1)] for stroke in strokes]
    drawn = [stroke.astype(np.float64) for stroke in finite if len(stroke)]
    if not drawn:
        return []
    points = np.concatenate(drawn)
    low, high = points.min(axis=0), points.max(axis=0)
    extent = float((high - low).max())
    points = (points - (low + high) / 2) * (max(inner, 0.0) / extent if extent > 0 else 0.0) + side / 2
    return np.split(points, np.cumsum([len(stroke) for stroke in drawn])[:-1])


def _resampled(
    points: npt.NDArray[np.float64], ends: npt.NDArray[np.int64], plan: DrawingsPlan
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Points [P, 2] of strokes that end before `ends`, as points equally spaced along each, and where they end then."""
    starts = np.concatenate([[0], ends[:-1]])
    steps = np.sqrt(np.square(np.diff(points, axis=0)).sum(axis=1))
    steps[ends[:-1] - 1] = 1.0  # between two strokes: any length, so that no two points of them share a position
    along = np.concatenate([[0.0], np.cumsum(steps)])
    first, last = along[starts], along[ends - 1]
    counts = np.maximum(2, ((last - first) / plan.point_spacing).astype(np.int64))
    total = int(counts.sum())
    if total >= plan.max_points:
        raise LongDrawingError(f"{total} points")
    new_ends = np.cumsum(counts)
    position = np.arange(total) - np.repeat(new_ends - counts, counts)
    share = position / np.repeat(counts - 1, counts)
    wanted = np.repeat(first, counts) * (1 - share) + np.repeat(last, counts) * share
    x, y = (np.interp(wanted, along, column) for column in points.T)
    return np.stack([x, y], axis=1), new_ends
