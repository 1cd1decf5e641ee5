"""The programs in examples/, as they are, on little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TINY
from finished_run import finished_run
from forked import run_forked
from PIL import Image

from schemas.plan import Plan

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _run(name: str, *arguments: str | Path) -> str:
    result = run_forked(EXAMPLES / name, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_example_is_tried_here() -> None:
    tried = {"launch_and_plot.py", "other_scheduler.py", "own_images.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tried


@pytest.mark.slow
def test_a_run_is_launched_from_python_and_its_losses_are_plotted(cache_dir: Path, tmp_path: Path) -> None:
    plan = {**TINY, "regions": [{"train": [0, 1000], "pruning_ratio": 0.5}]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(plan))
    options = ("--set", "training.steps=6", "--run-dir", tmp_path / "run", "--plot", tmp_path / "losses.png")
    said = _run("launch_and_plot.py", tmp_path / "tiny.yaml", *options)
    assert said.count("ticket drawn at step") == 1
    assert np.asarray(Image.open(tmp_path / "losses.png")).std() > 0


@pytest.mark.slow
def test_a_folder_of_images_is_trained_on(cache_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    little = ("--resolution", "8", "--steps", "4", "--batch-size", "4", "--run-dir", tmp_path / "run")
    said = _run("own_images.py", tmp_path / "photos", *little)
    assert said.count(": done") == 6
    assert Image.open(tmp_path / "run" / "samples" / "grid.png").size[0] > 8


def test_another_scheduler_draws_from_an_ensemble(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    finished_run(tmp_path / "run", tiny_plan())
    _run("other_scheduler.py", tmp_path / "run", "--steps", "3", "--out", tmp_path / "dpm.png")
    assert Image.open(tmp_path / "dpm.png").size == (4 * 8, 4 * 8)
