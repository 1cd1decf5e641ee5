"""Every kind of image file becomes uint8 pixels of the plan's size and channels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from region_workers.data.decode import UnreadableImageError, decode


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def constant(mode: str, colour: Any, size: int = 8) -> Image.Image:
    return Image.new(mode, (size, size), colour)


def half_red_half_blue() -> Image.Image:
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:8, :, 0] = 255
    pixels[8:, :, 2] = 255
    return Image.fromarray(pixels)


def test_an_image_that_fits_is_not_changed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(decode(encoded(Image.fromarray(pixels)), 8, 3), pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("image", "kind", "grey"),
    [
        (constant("L", 100), "PNG", 100),
        (constant("RGB", (100, 100, 100)), "PNG", 100),
        (constant("RGB", (100, 100, 100)), "JPEG", 100),
        (constant("1", 1), "PNG", 255),
        (constant("RGBA", (0, 0, 0, 0)), "PNG", 255),
        (constant("RGBA", (0, 0, 0, 255)), "PNG", 0),
        (constant("RGBA", (0, 0, 0, 128)), "PNG", 127),
        (constant("LA", (0, 128)), "PNG", 127),
        (constant("LA", (40, 255)), "PNG", 40),
        (constant("CMYK", (0, 0, 0, 0)), "JPEG", 255),
        (constant("CMYK", (0, 0, 0, 255)), "TIFF", 0),
        (constant("I;16", 65535), "PNG", 255),
        (constant("I;16", 25700), "PNG", 100),
        (constant("I;16", 256), "PNG", 1),
        (constant("I;16", 25700), "TIFF", 100),
        (constant("I", 25700), "TIFF", 100),
    ],
)
def test_every_mode_gives_its_grey_level(image: Image.Image, kind: str, grey: int, channels: int) -> None:
    pixels = decode(encoded(image, kind), 8, channels)
    assert pixels.shape == (8, 8, channels)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - grey).max() <= 1


def test_a_palette_gives_its_colours() -> None:
    image = half_red_half_blue().quantize(4)
    pixels = decode(encoded(image), 16, 3)
    assert np.array_equal(pixels, np.asarray(half_red_half_blue()))


def test_a_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 1)
    pixels = decode(encoded(image, transparency=0), 8, 3)
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[1, 1].tolist() == [255, 255, 255]


def test_a_transparent_colour_is_white() -> None:
    pixels = decode(encoded(constant("RGB", (10, 20, 30)), transparency=(10, 20, 30)), 8, 3)
    assert (pixels == 255).all()


def test_the_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    pixels = decode(encoded(half_red_half_blue(), exif=exif), 16, 3)
    assert np.array_equal(pixels, np.asarray(half_red_half_blue())[::-1, ::-1])


@pytest.mark.parametrize("size", [(33, 57), (57, 33), (7, 8), (8, 7), (1, 1), (5, 400), (9, 9)])
def test_odd_sizes_fit(size: tuple[int, int]) -> None:
    assert (decode(encoded(Image.new("RGB", size, (9, 99, 199))), 8, 3) == [9, 99, 199]).all()


def test_the_centre_is_kept() -> None:
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = 200
    assert (decode(encoded(Image.fromarray(pixels)), 8, 3) == 200).all()


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[:, ::2] = 255
    inner = decode(encoded(Image.fromarray(stripes)), 8, 1)[:, 1:-1].astype(int)
    assert np.abs(inner - 127).max() <= 3


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", None, encoded(half_red_half_blue())[:60], encoded(constant("F", 0.5), "TIFF")],
    ids=["empty", "text", "null", "cut short", "floating point"],
)
def test_what_is_no_picture_is_unreadable(data: bytes | None) -> None:
    with pytest.raises(UnreadableImageError):
        decode(data, 8, 3)
