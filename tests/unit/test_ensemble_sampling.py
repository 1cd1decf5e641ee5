"""`ebdiff sample`: its options reach the networks, and workers draw what one process draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ensemble_fixtures import saved_ensemble
from PIL import Image
from typer.testing import CliRunner

from ebdiff_orchestrator.cli.app import app
from ebdiff_orchestrator.cluster.executor import ThisProcess
from ebdiff_orchestrator.evaluation.sampling import SampleJob, sample_here, sample_on_workers
from ebdiff_orchestrator.run.view import View
from schemas.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "ensemble"
    saved_ensemble(path)
    return path


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "drawings"
    saved_ensemble(path, kind="drawings")
    return path


@pytest.fixture
def backwards() -> Backwards:
    return Backwards()


class Backwards(ThisProcess):
    """Makes one call after another, the last one first; remembers what was `asked`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Any, ...]] = []

    def run_many(self, function: Any, calls: Any) -> Any:
        self.asked.extend(calls)
        return reversed(list(super().run_many(function, calls)))


def ebdiff_sample(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["sample", *map(str, arguments)], catch_exceptions=False, standalone_mode=False)
    return result.output


def pixels(folder: Path, count: int) -> np.ndarray:
    return np.stack([np.asarray(Image.open(folder / f"{index:05d}.png")) for index in range(count)]).astype(int)


@pytest.mark.parametrize(("ensemble", "workers"), [("folder", 1), ("folder", 2), ("folder", 3), ("drawings", 2)])
def test_any_number_of_workers_draws_the_same_bits_in_order(
    request: pytest.FixtureRequest, ensemble: str, backwards: Backwards, workers: int
) -> None:
    job = SampleJob(str(request.getfixturevalue(ensemble)), count=8, batch_size=3, seed=5)
    torch.set_num_threads(1)  # as a plan's workers have
    expected = sample_here(job, lambda done, total: None)
    drawn = sample_on_workers(job, workers, None, View(), backwards)
    assert len(drawn.samples) == 8
    for sample, alone in zip(drawn.samples, expected.samples, strict=True):
        assert len(sample) == len(alone)
        assert all(np.array_equal(part, other) for part, other in zip(sample, alone, strict=True))
    assert drawn.peak_memory_bytes > 0
    assert len(backwards.asked) == workers
    assert sorted(batch.start for _, share, *_ in backwards.asked for batch in share) == [0, 3, 6]


def test_what_a_worker_cannot_do_is_said_as_in_one_process(folder: Path, backwards: Backwards) -> None:
    for wrong, message in (
        (SampleJob(str(folder), 4, 2, steps=2000), "--steps = 2000"),
        (SampleJob(str(folder), 4, 2, dtype="fp16"), "dtype = fp16"),
        (SampleJob(str(folder), 4, 2, classes=(1,)), "--class = 1"),
    ):
        with pytest.raises(UserError, match=message):
            sample_on_workers(wrong, 2, None, View(), backwards)


def test_the_command_s_options_change_what_is_drawn_by_no_more_than_they_say(folder: Path, tmp_path: Path) -> None:
    drawn = {}
    for name, options in {"plain": [], "offload": ["--offload"], "bf16": ["--dtype", "bf16"]}.items():
        said = ebdiff_sample(folder, "-n", "3", "--batch-size", "2", "--out", tmp_path / name, *options)
        assert "3 images and grid.png" in said
        assert "peak memory" in said
        drawn[name] = pixels(tmp_path / name, 3)
    assert np.array_equal(drawn["plain"], drawn["offload"])
    assert 0 < np.abs(drawn["plain"] - drawn["bf16"]).max() < 20


def test_drawings_are_written_as_svg_files_the_same_bits_offloaded(drawings: Path, tmp_path: Path) -> None:
    for name, options in {"plain": [], "offload": ["--offload"]}.items():
        said = ebdiff_sample(drawings, "-n", "3", "--batch-size", "2", "--out", tmp_path / name, *options)
        assert "3 drawings and grid.png" in said
    files = {file.name: file.read_bytes() for file in (tmp_path / "plain").iterdir()}
    assert sorted(files) == ["00000.svg", "00001.svg", "00002.svg", "grid.png", "grid.svg"]
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "offload").iterdir()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class", "1"], "--class = 1: expected none"),
        (["--guidance", "2"], "--guidance = 2: expected 1"),
        (["--compile"], "compile = True: expected False for drawings"),
        (["--steps", "1001"], "--steps = 1001: expected at most 1000"),
    ],
)
def test_options_that_drawings_have_not_are_refused(
    drawings: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ebdiff_sample(drawings, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
