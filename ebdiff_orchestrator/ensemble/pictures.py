"""Samples as files for people: images as PNG; drawings as SVG, a path a stroke in the order drawn; grids of them."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from region_workers.data.drawings import Stroke, placed, raster
from schemas.data import RasterPlan

Drawing = list[Stroke]  # each float32 [n, 2]: x, y with y downwards

GRID = "grid.png"
SVG_GRID = "grid.svg"
GRID_SAMPLES = 256
CELL_PX = 48
SEPARATOR_PX = 2
_SIDE, _INNER, _GAP, _LINE_WIDTH = 1000, 884, 40, 16  # a drawing's square in an SVG, what it fills of it, and so on
_SHOWN_PX = 256
_CELL = RasterPlan(canvas_px=96, line_width_px=1.5)


def write_images(images_NHWC: np.ndarray, folder: Path) -> None:
    """Write uint8 images [N, H, W, C] (C of 1 or 3) as 00000.png, 00001.png, ... and the first 256 as grid.png."""
    for index, image_HWC in enumerate(images_NHWC):
        to_pil(image_HWC).save(folder / f"{index:05d}.png")
    to_pil(image_grid(images_NHWC[:GRID_SAMPLES])).save(folder / GRID)


def image_grid(images_NHWC: np.ndarray) -> np.ndarray:
    """The images, uint8, side by side in a near-square grid on white [height, width, C], row by row.

    Small ones are enlarged by a whole factor (nearest neighbour) to cells of at least 48 px.
    """
    count, height, width, channels = images_NHWC.shape
    factor = max(1, math.ceil(CELL_PX / min(height, width)))
    cells = images_NHWC.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = columns_of(count)
    rows = math.ceil(count / columns)
    pitch_y, pitch_x = height * factor + SEPARATOR_PX, width * factor + SEPARATOR_PX
    grid = np.full((rows * pitch_y - SEPARATOR_PX, columns * pitch_x - SEPARATOR_PX, channels), 255, np.uint8)
    for index, cell in enumerate(cells):
        top, left = index // columns * pitch_y, index % columns * pitch_x
        grid[top : top + height * factor, left : left + width * factor] = cell
    return grid


def columns_of(count: int) -> int:
    """The columns of a near-square grid."""
    return math.ceil(math.sqrt(count))


def to_pil(image_HWC: np.ndarray) -> Image.Image:
    """A uint8 image [H, W, C] (C of 1 or 3) as a greyscale or RGB picture."""
    return Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC)


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
