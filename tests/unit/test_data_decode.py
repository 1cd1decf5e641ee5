"""Every kind of image file becomes uint8 pixels of the plan's size and channels."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from region_workers.data.decode import Transform, UnreadableImageError
from region_workers.data.decode import decode as decode_file
from region_workers.data.parallel import DecodeProcess, Pixels
from schemas.plan import CropPlan, DataPlan


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(
    data: bytes | None, resolution: int, channels: int, crop: CropPlan | None = None, interpolation: str = "lanczos"
) -> Pixels:
    plan = DataPlan.model_validate(
        {"resolution": resolution, "channels": channels, "crop": crop, "interpolation": interpolation}
    )
    pixels = decode_file(data, Transform.of(plan))
    return np.frombuffer(pixels, dtype=np.uint8).reshape(resolution, resolution, channels)


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


@pytest.mark.parametrize(
    ("kind", "palette"),
    [*((kind, False) for kind in ("PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP", "TGA", "JPEG2000")), ("PNG", True)],
)
def test_every_lossless_format_and_a_palette_give_the_pixels(kind: str, palette: bool) -> None:
    image = half_red_half_blue()
    file = encoded(image.quantize(4) if palette else image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decode(file, 16, 3), np.asarray(image))


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


def _exif_of_half_a_turn() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif


_XMP_OF_HALF_A_TURN = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {"exif": _exif_of_half_a_turn()}) for kind in ("PNG", "JPEG", "WEBP", "TIFF")),
        ("JPEG", {"xmp": _XMP_OF_HALF_A_TURN}),
    ],
)
def test_the_orientation_is_applied(kind: str, options: dict[str, Any]) -> None:
    pixels = decode(encoded(half_red_half_blue(), kind, **options), 16, 3)
    assert (pixels[:6, :, 2] > 200).all()
    assert (pixels[10:, :, 0] > 200).all()


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


def test_what_else_pillow_could_read_is_unreadable_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    image = half_red_half_blue()
    for kind in ("EPS", "ICO", "PCX", "PDF", "DDS", "SGI"):
        (tmp_path / "photo.png").write_bytes(encoded(image, kind))
        for payload in (str(tmp_path / "photo.png"), encoded(image, kind)):
            with pytest.raises(UnreadableImageError):
                decode_file(payload, Transform(8, 3))
    assert not started.exists()


def test_of_several_pictures_in_a_jpeg_the_first_counts() -> None:
    first, second = half_red_half_blue(), constant("RGB", (0, 255, 0), 16)
    both = encoded(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(both)).format == "MPO"
    assert np.array_equal(decode(both, 16, 3), decode(encoded(first, "JPEG"), 16, 3))


def png_of_zeros(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + side)) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff_of_one_tile(side: int, tile_side: int) -> bytes:
    data = zlib.compress(bytes(tile_side * tile_side), 9)
    sides = {256: side, 257: side, 322: tile_side, 323: tile_side}
    tags = dict(sorted({**sides, 258: 8, 259: 8, 262: 1, 277: 1, 324: 8, 325: len(data)}.items()))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("file", [png_of_zeros(13_000), tiff_of_one_tile(8, 16_000)], ids=["png", "tile of a tiff"])
def test_a_small_file_of_many_pixels_is_refused_before_it_takes_memory(file: bytes) -> None:
    assert len(file) < 300_000
    with DecodeProcess(Transform(8, 3), most_files=1) as process:
        _, unreadable = process.decode([file])
        status = Path(f"/proc/{process._process.pid}/status").read_text()
    assert "more than data.max_pixels" in unreadable[0]
    peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert peak_kib < 100 << 10


def test_the_limit_of_pixels_is_the_plan_s() -> None:
    file = encoded(constant("L", 7, size=20))
    assert decode_file(file, Transform.of(DataPlan(max_pixels=400))) == bytes([7]) * 64
    with pytest.raises(UnreadableImageError, match=r"400 pixels are more than data\.max_pixels = 399"):
        decode_file(file, Transform.of(DataPlan(max_pixels=399)))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a reader's"), RecursionError(), struct.error("short")])
@pytest.mark.parametrize("step", ["load", "crop", "resize"])
def test_whatever_an_image_raises_is_told_as_that_image_s(
    step: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    file = encoded(Image.new("L", (20, 30)))
    monkeypatch.setattr(Image.Image, step, fail)
    monkeypatch.setattr(ImageFile.ImageFile, step, fail)
    with pytest.raises(UnreadableImageError, match=type(error).__name__):
        decode(file, 8, 1)


def test_a_pipe_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "photo.png")
    with pytest.raises(UnreadableImageError, match="no regular file"):
        decode_file(str(tmp_path / "photo.png"), Transform(8, 1))


def test_the_square_of_celeba_is_cut_and_shrunk_as_the_ddim_code_does() -> None:
    # CelebA's aligned images are 178 x 218; rows 57..184, columns 25..152, torchvision's bilinear.
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    by_hand = Image.fromarray(pixels[57:185, 25:153]).resize((64, 64), Image.Resampling.BILINEAR)
    crop = CropPlan(center_x=89, center_y=121, size=128)
    decoded = decode(encoded(Image.fromarray(pixels)), 64, 3, crop, "bilinear")
    assert np.array_equal(decoded, np.asarray(by_hand))
    assert not np.array_equal(decode(encoded(Image.fromarray(pixels)), 64, 3, None, "bilinear"), decoded)


@pytest.mark.parametrize("name", ["lanczos", "bilinear", "bicubic"])
def test_the_interpolation_is_pillows(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    by_hand = Image.fromarray(pixels[:, 10:50]).resize((16, 16), Image.Resampling[name.upper()])
    assert np.array_equal(decode(encoded(Image.fromarray(pixels)), 16, 3, interpolation=name), np.asarray(by_hand))


def test_a_square_of_odd_size_begins_half_its_size_before_the_centre() -> None:
    pixels = np.arange(400, dtype=np.uint16).reshape(20, 20).astype(np.uint8)
    crop = CropPlan(center_x=10, center_y=7, size=5)
    assert np.array_equal(decode(encoded(Image.fromarray(pixels)), 5, 1, crop)[:, :, 0], pixels[5:10, 8:13])


@pytest.mark.parametrize("centre", [(2, 8), (8, 2), (14, 8), (8, 14)])
def test_an_image_that_does_not_hold_the_square_is_unreadable(centre: tuple[int, int]) -> None:
    crop = CropPlan(center_x=centre[0], center_y=centre[1], size=8)
    with pytest.raises(UnreadableImageError, match=r"16 x 16 pixels do not hold the square of data\.crop, columns"):
        decode(encoded(Image.new("L", (16, 16))), 8, 1, crop)
