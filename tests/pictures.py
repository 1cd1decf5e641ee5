"""Small image files with random pixels."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image


def save_images(
    folder: Path, sizes: list[tuple[int, int]], suffix: str = "png", seed: int = 0, classes: int = 0
) -> Path:
    """RGB images of the sizes (width, height): 0000.png, 0001.png; with classes in folders: class-1/0001.png."""
    generator = np.random.default_rng(seed)
    for number, (width, height) in enumerate(sizes):
        place = folder / f"class-{number % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:04}.{suffix}")
    return folder


def png(grey: int) -> bytes:
    """A file of 8 x 8 pixels of one grey."""
    file = io.BytesIO()
    Image.new("L", (8, 8), grey).save(file, "PNG")
    return file.getvalue()


def serve_from_hub(stream: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a data set on the hub, which has these rows: all but the download is real."""
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(sha="0123456789abcdef"))
    monkeypatch.setattr("region_workers.data.hub._load", lambda *_: stream)
    return "some/images"
