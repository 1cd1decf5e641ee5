"""A drawing as a picture: black lines on white, as people see it and as measures do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from region_workers.data.drawings import Stroke
from schemas.drawings import RasterPlan

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
