"""One image file to the bytes of its pixels, of the plan's size and channels; as a program, for another process.

    python -m region_workers.data.decode TRANSFORM_JSON DESCRIPTOR

decodes the files that come on its standard input; pixels leave through memory that both see. A request is a line of
JSON, the list of what the files are, and then their bytes; a reply is a line, the positions of what is unreadable, with
the reasons.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from PIL import Image, ImageOps

from schemas.limits import MAX_PIXELS

if TYPE_CHECKING:  # a decoding process starts three times as fast without pydantic and numpy
    from schemas.plan import DataPlan

Payload = bytes | str | None  # a file, its path, or nothing
Label = int | str | None

# Raise it whenever `decode` gives other pixels for the same file: stores of the older version are then built anew.
TRANSFORM_VERSION = 2

# What sources of images hold, read by Pillow within this process. Left to itself Pillow tries every reader it has,
# whatever the file is called: EPS by way of Ghostscript, icons and camera files by way of other readers.
# JPEG covers MPO, as phones write it: its first picture counts. TGA, which has no mark of its own, comes last.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

PIPE_BYTES = 1 << 18  # what is handed to a decoding process at once

_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF
_SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_SIXTEEN_TO_EIGHT_BITS = 65535 // 255
_WITH_ORIENTATION = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})  # where Pillow looks


class Item(NamedTuple):
    """One image of a source: its name (file name or row number), its file, its label as the source gives it."""

    name: str
    payload: Payload
    label: Label = None


class Transform(NamedTuple):
    """What is done to each image, as plain values. `crop`: the square's centre, column and row, and its side."""

    resolution: int
    channels: int
    crop: tuple[int, int, int] | None = None
    interpolation: str = "lanczos"
    max_pixels: int = MAX_PIXELS

    @classmethod
    def of(cls, plan: DataPlan) -> Transform:
        """The plan's."""
        crop = None if plan.crop is None else (plan.crop.center_x, plan.crop.center_y, plan.crop.size)
        return cls(plan.resolution, plan.channels, crop, plan.interpolation, plan.max_pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image's pixels: height, width, channels."""
        return (self.resolution, self.resolution, self.channels)

    @property
    def image_bytes(self) -> int:
        """The size of an image's pixels."""
        return math.prod(self.shape)


class UnreadableImageError(ValueError):
    """A file that gives no picture; the message says why."""


def decode_files(payloads: Sequence[Payload], transform: Transform, room: memoryview) -> dict[int, str]:
    """Put the pixels of each readable file into `room` (bytes), one behind the other; the others' positions and why."""
    unreadable: dict[int, str] = {}
    end = 0
    for position, payload in enumerate(payloads):
        try:
            pixels = decode(payload, transform)
        except UnreadableImageError as error:
            unreadable[position] = str(error)
        else:
            start, end = end, end + transform.image_bytes
            room[start:end] = pixels
    return unreadable


def decode(payload: Payload, transform: Transform) -> bytes:
    """The image as uint8 [H, W, C].

    Turned as its EXIF orientation says; alpha laid on white; 16-bit greyscale scaled to 8 bits; the square of the crop,
    or else the one at its centre, resized to the resolution with one of Pillow's antialiased FILTERS, unless it
    fits already. Raises UnreadableImageError, also for an image that does not hold the whole square of the crop.
    """
    try:
        with open_image(payload, transform.max_pixels) as image:
            image.load()
            if image.format == "TIFF" or not _WITH_ORIENTATION.isdisjoint(image.info):
                ImageOps.exif_transpose(image, in_place=True)
            coloured = _to_channels(image, transform.channels)
        square = _centre(coloured) if transform.crop is None else _cut(coloured, *transform.crop)
        size = (transform.resolution, transform.resolution)
        if square.size != size:
            square = square.resize(size, FILTERS[transform.interpolation])
        return square.tobytes()
    except UnreadableImageError:
        raise
    except Exception as error:  # a reader may raise anything on a damaged file, and it is that one file's
        raise UnreadableImageError(_reason(error)) from error


def open_image(payload: Payload, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image, of which nothing but the head is read yet. UnreadableImageError unless it is one of the FORMATS and
    of at most `max_pixels`.
    """
    if payload is None:
        raise UnreadableImageError("the row holds no image")
    if isinstance(payload, str) and not os.path.isfile(payload):  # noqa: PTH113 - a Path for each costs more
        # To open a pipe would wait for its other end.
        raise UnreadableImageError("there is no regular file of this name")
    try:
        image = Image.open(io.BytesIO(payload) if isinstance(payload, bytes) else payload, formats=FORMATS)
        pixels = max(image.width * image.height, _tile_pixels(image))
    except Exception as error:
        raise UnreadableImageError(_reason(error)) from error
    if pixels > max_pixels:
        image.close()
        raise UnreadableImageError(
            f"{pixels:,} pixels are more than data.max_pixels = {max_pixels}, which may be raised"
        )
    return image


def _tile_pixels(image: Image.Image) -> int:
    """Of a TIFF's tile, which is unpacked as a whole however small the image is; else 0."""
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _to_channels(image: Image.Image, channels: int) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        image = _to_eight_bits(image)
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; convert the file to 8 or 16 bits")
    elif image.has_transparency_data:
        image = _on_white(image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    import numpy as np

    # Pillow's own convert("L") clips everything above 255 to white.
    values = np.array(image, dtype=np.int32)
    np.clip(values, 0, 65535, out=values)
    values += _SIXTEEN_TO_EIGHT_BITS // 2
    values //= _SIXTEEN_TO_EIGHT_BITS
    return Image.fromarray(values.astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # premultiplied greyscale converts to RGBA only by way of LA
        image = image.convert("LA")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer)


def _centre(image: Image.Image) -> Image.Image:
    # Cut first: resizing all of a very long image would need memory without bound.
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image if image.size == (side, side) else image.crop((left, top, left + side, top + side))


def _cut(image: Image.Image, center_x: int, center_y: int, side: int) -> Image.Image:
    left, top = center_x - side // 2, center_y - side // 2
    right, bottom = left + side, top + side
    if left < 0 or top < 0 or right > image.width or bottom > image.height:
        raise UnreadableImageError(
            f"its {image.width} x {image.height} pixels do not hold the square of data.crop, "
            f"columns {left}..{right - 1} and rows {top}..{bottom - 1}"
        )
    return image.crop((left, top, right, bottom))


def main() -> None:
    """Answer requests until there are no more."""
    transform = Transform(*json.loads(sys.argv[1]))
    room = memoryview(mmap.mmap(int(sys.argv[2]), 0))
    requests = os.fdopen(sys.stdin.fileno(), "rb", PIPE_BYTES)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed must not fall among the replies
    try:
        while True:
            request = read_line(requests)
            files = [_read(requests, entry) if isinstance(entry, int) else entry for entry in request]
            write_line(replies, list(decode_files(files, transform, room).items()))
    except (BrokenPipeError, EOFError):  # whoever asked is gone
        os._exit(0)


def write_line(stream: IO[bytes], value: Any, rest: Sequence[bytes] = ()) -> None:
    """Send a JSON value, and what bytes follow it. Raises BrokenPipeError."""
    stream.writelines([json.dumps(value).encode(), b"\n", *rest])
    stream.flush()


def read_line(stream: IO[bytes]) -> Any:
    """The value of a `write_line`. Raises EOFError."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return json.loads(line)


def _read(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


if __name__ == "__main__":
    main()
