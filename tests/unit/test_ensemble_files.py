"""Samples on disk: images as PNG, drawings as SVG, each with a grid."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ebdiff_orchestrator.ensemble import write_samples
from ebdiff_orchestrator.ensemble.pictures import image_grid
from region_workers.data.svg import strokes_of_svg
from schemas.errors import UserError

SVG = "{http://www.w3.org/2000/svg}"
CORNER = [np.array([[0, 0], [4, 0], [4, 4]], np.float32), np.array([[2, 1], [2, 3]], np.float32)]


def noise_images(count: int, side: int = 8, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)


def paths(file: Path) -> list[str]:
    """The data of the paths in an SVG file, in their order."""
    return [path.attrib["d"] for path in ElementTree.parse(file).getroot().iter(f"{SVG}path")]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_written_images_read_back_exactly(tmp_path: Path, channels: int, mode: str) -> None:
    images = noise_images(3, channels=channels)
    write_samples(images, tmp_path / "images")
    names = sorted(file.name for file in (tmp_path / "images").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png", "grid.png"]
    for index, image in enumerate(images):
        with Image.open(tmp_path / "images" / f"{index:05d}.png") as file:
            assert file.mode == mode
            assert np.array_equal(np.asarray(file).reshape(image.shape), image)


def test_the_grid_is_near_square_with_enlarged_cells_and_separators() -> None:
    images = noise_images(5, side=20)
    grid = image_grid(images)
    pitch = 60 + 2  # 20 px enlarged three times
    assert grid.shape == (2 * pitch - 2, 3 * pitch - 2, 1)
    assert np.array_equal(grid[pitch::3, pitch : pitch + 60 : 3][:20], images[4])
    assert (grid[60:62] == 255).all()
    assert image_grid(noise_images(1, side=64)).shape == (64, 64, 1)


def test_a_grid_holds_256_images_at_most(tmp_path: Path) -> None:
    write_samples(noise_images(257, side=4), tmp_path / "images")
    with Image.open(tmp_path / "images" / "grid.png") as grid:
        assert grid.size == (16 * 50 - 2, 16 * 50 - 2)
    assert len(list((tmp_path / "images").iterdir())) == 258


def test_an_svg_has_a_path_a_stroke_in_the_order_drawn(tmp_path: Path) -> None:
    dot, nothing = [np.zeros((3, 2), np.float32)], []
    write_samples([CORNER, dot, nothing, [np.float32([[0, np.nan], [1, 1], [2, np.inf]])]], tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["00000.svg", "00001.svg", "00002.svg", "00003.svg", "grid.png", "grid.svg"]
    assert paths(tmp_path / "out/00000.svg") == ["M58 58l884 0 0 884", "M500 279l0 442"]
    read_back = strokes_of_svg((tmp_path / "out/00000.svg").read_bytes())
    ends = [(stroke[0].tolist(), stroke[-1].tolist()) for stroke in read_back]
    assert ends == [([58, 58], [942, 942]), ([500, 279], [500, 721])]
    assert paths(tmp_path / "out/00001.svg") == ["M500 500h0"]
    assert paths(tmp_path / "out/00002.svg") == []
    assert paths(tmp_path / "out/00003.svg") == ["M500 500h0"]
    root = ElementTree.parse(tmp_path / "out/00000.svg").getroot()
    assert (root.tag, root.attrib["viewBox"]) == (f"{SVG}svg", "0 0 1000 1000")


def test_the_grids_hold_256_drawings_at_most_in_rows(tmp_path: Path) -> None:
    write_samples([CORNER] * 5, tmp_path / "five")
    grid = ElementTree.parse(tmp_path / "five/grid.svg").getroot()
    assert grid.attrib["viewBox"] == "0 0 3080 2040"
    places = [cell.attrib["transform"] for cell in grid.iter(f"{SVG}g")]
    assert places == [f"translate({x} {y})" for x, y in ((0, 0), (1040, 0), (2080, 0), (0, 1040), (1040, 1040))]
    assert paths(tmp_path / "five/grid.svg") == paths(tmp_path / "five/00000.svg") * 5
    with Image.open(tmp_path / "five/grid.png") as image:
        assert (image.mode, image.size) == ("L", (3 * 98 - 2, 2 * 98 - 2))
        assert np.asarray(image)[:96, :96].min() < 50
    write_samples([CORNER] * 257, tmp_path / "many")
    assert len(paths(tmp_path / "many/grid.svg")) == 2 * 256
    assert len(list((tmp_path / "many").glob("0*.svg"))) == 257


def test_a_drawing_of_a_kanjis_size_is_a_small_file(tmp_path: Path) -> None:
    angles = np.linspace(0, 6, 100, dtype=np.float32)
    write_samples([[np.stack([np.cos(angles), np.sin(angles * (k + 1))], axis=1) for k in range(3)]], tmp_path / "out")
    assert (tmp_path / "out/00000.svg").stat().st_size < 3000


@pytest.mark.parametrize(("drawn", "mine"), [(noise_images(2), "notes.txt"), ([CORNER], "mine.svg")])
def test_samples_replace_older_ones_of_any_kind_and_nothing_else(tmp_path: Path, drawn: Any, mine: str) -> None:
    write_samples(noise_images(4), tmp_path / "out")
    write_samples(drawn, tmp_path / "out")
    assert not (tmp_path / "out" / "00003.png").exists()
    (tmp_path / "out" / mine).write_text("mine")
    with pytest.raises(UserError, match="new or empty folder"):
        write_samples(drawn, tmp_path / "out")
    assert (tmp_path / "out" / mine).exists()
