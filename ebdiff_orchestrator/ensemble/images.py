"""Images as files for people: one PNG each, and a grid of them."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

GRID = "grid.png"
GRID_SAMPLES = 256
CELL_PX = 48
SEPARATOR_PX = 2


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
