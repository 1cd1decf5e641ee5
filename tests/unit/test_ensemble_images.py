"""Images from an ensemble and images on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ensemble_fixtures import ensemble
from PIL import Image

from ebdiff_orchestrator.ensemble import (
    samples_of,
    write_samples,
)
from ebdiff_orchestrator.ensemble.pictures import image_grid
from schemas.errors import UserError


def noise_images(count: int, side: int = 8, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    pipeline = ensemble(eta=1.0)
    state = torch.get_rng_state()
    samples_of(pipeline, 2, seed=3, steps=2, batch_size=2)
    assert torch.equal(state, torch.get_rng_state())


def test_progress_counts_the_steps_of_all_batches() -> None:
    reports: list[tuple[int, int]] = []
    samples_of(ensemble(), 5, 0, 2, batch_size=2, report=lambda done, total: reports.append((done, total)))
    assert reports == [(done, 6) for done in range(1, 7)]


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


def test_images_replace_older_images_and_nothing_else(tmp_path: Path) -> None:
    write_samples(noise_images(4), tmp_path / "images")
    write_samples(noise_images(2), tmp_path / "images")
    assert not (tmp_path / "images" / "00003.png").exists()
    (tmp_path / "images" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="new or empty folder"):
        write_samples(noise_images(2), tmp_path / "images")
    assert (tmp_path / "images" / "notes.txt").exists()
