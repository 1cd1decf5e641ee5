"""One image file's bytes to uint8 pixels of the plan's size and channels."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]
Payload = bytes | Path | Pixels | None

# Raise it whenever `decode` gives other pixels for the same file: stores of the older version are then built anew.
TRANSFORM_VERSION = 1

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


class UnreadableImageError(ValueError):
    """A file that gives no picture; the message says why."""


def decode(payload: Payload, resolution: int, channels: int) -> Pixels:
    """The image as uint8 [resolution, resolution, channels].

    Turned as its EXIF orientation says; alpha laid on white; 16-bit greyscale scaled to 8 bits; the square at its
    centre resized to `resolution` pixels with Pillow's antialiased Lanczos filter, unless it fits already.
    Raises UnreadableImageError.
    """
    try:
        with _open(payload) as image:
            upright = ImageOps.exif_transpose(image)
            coloured = _to_channels(upright, channels)
    except _UNREADABLE as error:
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error
    return np.asarray(_fit(coloured, resolution), dtype=np.uint8).reshape(resolution, resolution, channels)


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


def _fit(image: Image.Image, resolution: int) -> Image.Image:
    # Cut first: resizing all of a very long image would need memory without bound.
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image if image.size == (side, side) else image.crop((left, top, left + side, top + side))
    return square if side == resolution else square.resize((resolution, resolution), Image.Resampling.LANCZOS)
