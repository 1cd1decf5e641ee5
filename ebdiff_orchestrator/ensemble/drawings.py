"""Drawings as files for people: one SVG each, a path a stroke in the order drawn, and a grid of them as SVG and PNG."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ebdiff_orchestrator.ensemble.images import GRID, GRID_SAMPLES, columns_of, image_grid, to_pil
from region_workers.data.drawings import Stroke, placed, raster
from schemas.drawings import RasterPlan

Drawing = list[Stroke]  # each float32 [n, 2]: x, y with y downwards

SVG_GRID = "grid.svg"
_SIDE, _INNER, _GAP, _LINE_WIDTH = 1000, 884, 40, 16  # a drawing's square in an SVG, what it fills of it, and so on
_SHOWN_PX = 256
_CELL = RasterPlan(canvas_px=96, line_width_px=1.5)


def write_drawings(drawings: Sequence[Drawing], folder: Path) -> None:
    """Write drawings as 00000.svg, 00001.svg, ... and the first 256 as grid.svg and grid.png."""
    for index, drawing in enumerate(drawings):
        (folder / f"{index:05d}.svg").write_text(svg(drawing))
    shown = drawings[:GRID_SAMPLES]
    (folder / SVG_GRID).write_text(svg_grid(shown))
    to_pil(drawing_grid(shown)).save(folder / GRID)


def drawing_grid(drawings: Sequence[Drawing]) -> np.ndarray:
    """The drawings side by side as pixels, as `image_grid` has them."""
    return image_grid(np.stack([raster(drawing, _CELL) for drawing in drawings]))


def svg(drawing: Drawing) -> str:
    """The drawing alone, filling a square but for its margins."""
    return _document(_SIDE, _SIDE, _SHOWN_PX, _paths(drawing))


def svg_grid(drawings: Sequence[Drawing]) -> str:
    """The drawings side by side in a near-square grid, row by row."""
    columns, pitch = columns_of(len(drawings)), _SIDE + _GAP
    rows = -(-len(drawings) // columns)
    cells = []
    for index, drawing in enumerate(drawings):
        place = f"{index % columns * pitch} {index // columns * pitch}"
        cells += [f'<g transform="translate({place})">', *_paths(drawing), "</g>"]
    return _document(columns * pitch - _GAP, rows * pitch - _GAP, columns * _SHOWN_PX // 4, cells)


def _paths(drawing: Drawing) -> list[str]:
    """One path a stroke, in whole units of a square; from the first point on they are steps."""
    return [f'<path d="{_path(np.rint(stroke).astype(int))}"/>' for stroke in placed(drawing, _SIDE, _INNER)]


def _path(points_P2: np.ndarray) -> str:
    steps = np.diff(points_P2, axis=0)
    steps = steps[steps.any(axis=1)]
    line = "l" + " ".join(f"{x} {y}" for x, y in steps) if len(steps) else "h0"  # a dot, by its round ends
    return f"M{points_P2[0, 0]} {points_P2[0, 1]}{line}"


def _document(width: int, height: int, shown_px: int, content: Iterable[str]) -> str:
    pen = f'fill="none" stroke="#000" stroke-width="{_LINE_WIDTH}" stroke-linecap="round" stroke-linejoin="round"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{shown_px}" viewBox="0 0 {width} {height}" {pen}>'
    return "\n".join([head, *content, "</svg>"]) + "\n"
