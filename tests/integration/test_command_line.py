"""The main job through the command line, with a real Ray: to the end, and asked again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TINY
from forked import run_forked
from PIL import Image

from region_workers.storage.integrity import file_digest
from schemas.manifest import Manifest

REGIONS = ("0-260", "240-460", "440-1000")
LONG_ENOUGH_TO_OVERLAP = {
    **TINY,
    "training": {**TINY["training"], "steps": 120},
    "draw": {"interval_steps": 2, "threshold": 1.0},
    "checkpointing": {"interval_steps": 20},
}


def ebdiff(*arguments: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return run_forked("ebdiff", *arguments, timeout=timeout)


def _manifest(run_dir: Path) -> Manifest:
    return Manifest.model_validate_json((run_dir / "manifest.json").read_text())


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "long.yaml"
    path.write_text(yaml.safe_dump(LONG_ENOUGH_TO_OVERLAP))
    return path


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, plan_file: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    installed = Path(sys.executable).parent / "ebdiff"  # this once, as a user calls it
    command = [installed, "launch", plan_file, "--run-dir", run_dir]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return run_dir


@pytest.mark.slow
def test_three_regions_train_at_the_same_time_to_an_ensemble_that_samples(finished_run: Path) -> None:
    manifest = _manifest(finished_run)
    assert manifest.finished()
    records = [manifest.stage(f"train/{name}") for name in REGIONS]
    latest_start = max(record.started_at or 0.0 for record in records)
    earliest_end = min(record.finished_at or 0.0 for record in records)
    assert latest_start < earliest_end, "the regions' trainings do not overlap"
    assert np.asarray(Image.open(finished_run / "samples" / "grid.png")).std() > 0
    for artifacts in (record.artifacts for record in manifest.stages.values()):
        assert artifacts
        assert all(file_digest(finished_run / a.path) == a.sha256 for a in artifacts)


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is_and_says_so(finished_run: Path, plan_file: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.safetensors")}
    result = ebdiff("launch", plan_file, "--run-dir", finished_run, timeout=60)
    assert result.returncode == 0
    assert "finished; nothing to do" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.safetensors")} == before


@pytest.mark.slow
def test_status_and_sample_work_on_a_finished_run_without_ray(finished_run: Path, tmp_path: Path) -> None:
    status = json.loads(ebdiff("status", finished_run, "--json").stdout)
    assert status["finished"] is True
    assert status["manifest"]["stages"]["draw/0-260"]["status"] == "done"
    out = tmp_path / "images"
    result = ebdiff("sample", finished_run, "-n", "5", "--steps", "3", "--out", out, "--seed", "7")
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in out.iterdir()) == [f"{i:05d}.png" for i in range(5)] + ["grid.png"]


def test_plan_json_has_the_paper_s_numbers() -> None:
    preview = json.loads(ebdiff("plan", "cifar10", "--json").stdout)
    assert preview["dense"] == {"params": 35746307, "macs": 6064135040, "macs_with_attention": 6221856768}
    assert [region["route"] for region in preview["regions"]] == [[0, 240], [240, 440], [440, 1000]]
    assert preview["weighted"]["macs"] == pytest.approx(1.32e9, rel=0.01)
    assert all(isinstance(region["params"], int) for region in preview["regions"])
