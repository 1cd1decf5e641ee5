"""One image file's bytes to uint8 pixels of the plan's size and channels."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from schemas.plan import CropPlan

Pixels = npt.NDArray[np.uint8]
Payload = bytes | Path | Pixels | None
Label = int | str | None

# Raise it whenever `decode` gives other pixels for the same file: stores of the older version are then built anew.
TRANSFORM_VERSION = 1

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

_SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_SIXTEEN_TO_EIGHT_BITS = 65535 / 255

# What Pillow's readers raise on files that are cut short, damaged or no images at all.
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class Item(NamedTuple):
    """One image of a source: its name (file name or row number), its file, its label as the source gives it."""

    name: str
    payload: Payload
    label: Label = None


class UnreadableImageError(ValueError):
    """A file that gives no picture; the message says why."""


def decode(
    payload: Payload, resolution: int, channels: int, crop: CropPlan | None = None, interpolation: str = "lanczos"
) -> Pixels:
    """The image as uint8 [resolution, resolution, channels].

    Turned as its EXIF orientation says; alpha laid on white; 16-bit greyscale scaled to 8 bits; the square of `crop`,
    or else the one at its centre, resized to `resolution` pixels with one of Pillow's antialiased FILTERS, unless it
    fits already. Raises UnreadableImageError, also for an image that does not hold the whole square of `crop`.
    """
    try:
        with _open(payload) as image:
            upright = ImageOps.exif_transpose(image)
            coloured = _to_channels(upright, channels)
    except _UNREADABLE as error:
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error
    square = _centre(coloured) if crop is None else _cut(coloured, crop)
    if square.size != (resolution, resolution):
        square = square.resize((resolution, resolution), FILTERS[interpolation])
    return np.asarray(square, dtype=np.uint8).reshape(resolution, resolution, channels)


def _open(payload: Payload) -> Image.Image:
    if payload is None:
        raise ValueError("the row holds no image")
    if isinstance(payload, np.ndarray):
        return Image.fromarray(payload)
    if isinstance(payload, bytes):
        return Image.open(io.BytesIO(payload))
    return Image.open(payload)


def _to_channels(image: Image.Image, channels: int) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        image = _to_eight_bits(image)
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; convert the file to 8 or 16 bits")
    elif image.has_transparency_data:
        image = _on_white(image)
    return image.convert("L" if channels == 1 else "RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own convert("L") clips everything above 255 to white.
    values = np.asarray(image, dtype=np.float64).clip(0, 65535)
    return Image.fromarray(np.rint(values / _SIXTEEN_TO_EIGHT_BITS).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # premultiplied greyscale converts to RGBA only by way of LA
        image = image.convert("LA")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer)


def _centre(image: Image.Image) -> Image.Image:
    # Cut first: resizing all of a very long image would need memory without bound.
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image if image.size == (side, side) else image.crop((left, top, left + side, top + side))


def _cut(image: Image.Image, crop: CropPlan) -> Image.Image:
    left, top = crop.center_x - crop.size // 2, crop.center_y - crop.size // 2
    right, bottom = left + crop.size, top + crop.size
    if left < 0 or top < 0 or right > image.width or bottom > image.height:
        raise UnreadableImageError(
            f"its {image.width} x {image.height} pixels do not hold the square of data.crop, "
            f"columns {left}..{right - 1} and rows {top}..{bottom - 1}"
        )
    return image.crop((left, top, right, bottom))
