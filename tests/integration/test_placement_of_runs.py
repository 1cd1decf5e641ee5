"""Runs whose regions get as many workers as the placement says, or as become free; processes in the place of Ray."""

from pathlib import Path

import pytest
from conftest import MakeJobs, MakePlan
from process_cluster import ProcessCluster, run_worker
from safetensors.torch import load_file

from ebdiff_orchestrator.run import growth
from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run import placing as jobs
from ebdiff_orchestrator.run.growth import next_growth
from schemas.errors import PlanError

_LONG, _MIDDLE, _SHORT = "region 0-260", "region 240-460", "region 440-1000"


@pytest.fixture
def known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that cost what the paper's experts cost on CIFAR-10, and draws that cost next to nothing."""
    seconds = {0.0: 0.01, 0.3: 3.39, 0.6: 1.49, 0.8: 0.375}
    monkeypatch.setattr(jobs, "step_seconds", lambda plan: seconds)


@pytest.mark.usefixtures("known_times")
def test_balanced_gives_the_region_that_would_end_last_two_workers(tiny_plan: MakePlan, tmp_path: Path) -> None:
    cluster = ProcessCluster(3)
    plan = tiny_plan("placement=balanced", "draw.interval_steps=1", "training.steps=6")
    manifest = driver.launch(plan, tmp_path / "run", executor=cluster).manifest
    assert cluster.widths == {_LONG: [2], _MIDDLE: [1], _SHORT: [1]}
    assert manifest.step_seconds == {0.0: 0.01, 0.3: 3.39, 0.6: 1.49, 0.8: 0.375}
    assert {held.job: held.workers for held in manifest.usage if "region" in held.job}[_LONG] == 2


@pytest.mark.usefixtures("known_times")
def test_packed_leaves_a_worker_that_would_end_nothing_sooner(tiny_plan: MakePlan, tmp_path: Path) -> None:
    cluster = ProcessCluster(3)
    plan = tiny_plan("placement=packed", "draw.interval_steps=1", "training.steps=6")
    assert driver.launch(plan, tmp_path / "run", executor=cluster).manifest.finished()
    assert cluster.widths == {_LONG: [1], _MIDDLE: [1], _SHORT: [1]}
    assert cluster.most_running == 2


def test_placement_starts_from_a_device_a_region(tiny_plan: MakePlan) -> None:
    for change in ("placement=balanced", "placement=packed", "workers.elastic=true"):
        with pytest.raises(PlanError, match="it decides itself how many a region gets"):
            tiny_plan(change, "workers.gpus=2")


def test_a_worker_that_a_finished_region_leaves_joins_one_still_training(
    tiny_plan: MakePlan,
    make_jobs: MakeJobs,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(growth, "next_growth", lambda *args: next_growth(*args[:-1], restart_s=0.0))  # always pays
    regions = (
        "regions=[{train: [0, 520], pruning_ratio: 0.3, steps: 150}, "
        "{train: [500, 1000], pruning_ratio: 0.5, steps: 1}]"
    )
    options = (regions, "checkpointing.interval_steps=10")
    run_worker(make_jobs(tiny_plan(*options), tmp_path / "alone")[0])
    cluster = ProcessCluster(2)
    driver.launch(
        tiny_plan(*options, "workers.elastic=true", "workers.retries=0"), tmp_path / "joined", executor=cluster
    )

    assert cluster.widths == {"region 0-520": [1, 2], "region 500-1000": [1]}
    assert cluster.most_running == 2
    record = driver.resume(tmp_path / "joined", executor=cluster).manifest.stage("train/0-520")
    assert record.hardware is not None
    assert (record.status, record.steps, record.hardware.world_size) == ("done", 150, 2)
    file = "train/0-520/expert/diffusion_pytorch_model.safetensors"
    expected, joined = load_file(tmp_path / "alone" / file), load_file(tmp_path / "joined" / file)
    for name, tensor in expected.items():  # only the order of the gradient's sums is another
        assert (tensor - joined[name]).abs().max() < 0.05 * tensor.abs().max() + 1e-3, name
