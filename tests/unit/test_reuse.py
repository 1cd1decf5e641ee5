"""Nothing is computed twice: equal stages of other runs are taken over, and finished experts train on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from serial_cluster import SerialCluster

from ebdiff_orchestrator.run import launch as driver
from region_workers.storage.integrity import file_digest
from schemas.errors import PlanError, UserError
from schemas.job import WEIGHTS_FILE
from schemas.plan import Plan

MakePlan = Callable[..., Plan]
REGIONS = "regions=[{train: [0, 520], pruning_ratio: 0.5}, {train: [500, 1000], pruning_ratio: %s}]"
QUICK = ("draw.threshold=1.0", "training.steps=4", "sampling.num_images=2", "sampling.steps=2")


def _weights(run_dir: Path, region: str) -> str:
    return file_digest(run_dir / "train" / region / "expert" / WEIGHTS_FILE)


def test_equal_stages_are_taken_over_and_only_the_rest_is_computed(
    tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    driver.launch(tiny_plan(REGIONS % 0.6, *QUICK), tmp_path / "first", executor=serial_cluster)
    serial_cluster.jobs.clear()
    handle = driver.launch(
        tiny_plan(REGIONS % 0.8, *QUICK), tmp_path / "second", reuse=[tmp_path / "first"], executor=serial_cluster
    )
    assert serial_cluster.jobs == ["region 500-1000"]
    manifest = handle.manifest
    assert manifest.finished()
    assert manifest.stage("draw/0-520").reused_from == str(tmp_path / "first")
    assert manifest.stage("train/0-520").reused_from == str(tmp_path / "first")
    assert manifest.stage("train/500-1000").reused_from is None
    assert _weights(tmp_path / "second", "0-520") == _weights(tmp_path / "first", "0-520")
    assert [held.job for held in manifest.usage if held.job.startswith("region")] == ["region 500-1000"]


def test_a_damaged_file_of_the_other_run_is_not_taken_over(
    tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    driver.launch(tiny_plan(REGIONS % 0.6, *QUICK), tmp_path / "first", executor=serial_cluster)
    weights = tmp_path / "first/train/0-520/expert" / WEIGHTS_FILE
    whole = file_digest(weights)
    weights.write_bytes(weights.read_bytes()[:-1])
    serial_cluster.jobs.clear()
    handle = driver.launch(
        tiny_plan(REGIONS % 0.8, *QUICK), tmp_path / "second", reuse=[tmp_path / "first"], executor=serial_cluster
    )
    assert sorted(serial_cluster.jobs) == ["region 0-520", "region 500-1000"]
    assert handle.manifest.stage("draw/0-520").reused_from is not None
    assert _weights(tmp_path / "second", "0-520") == whole  # from the last checkpoint, which is whole


def test_an_extended_run_ends_in_the_bits_of_one_long_run(
    tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    driver.launch(tiny_plan(REGIONS % 0.6, *QUICK), tmp_path / "run", executor=serial_cluster)
    short = _weights(tmp_path / "run", "0-520")
    handle = driver.extend(tmp_path / "run", ["training.steps=7"], executor=serial_cluster)
    driver.launch(tiny_plan(REGIONS % 0.6, *QUICK, "training.steps=7"), tmp_path / "long", executor=serial_cluster)
    assert handle.manifest.finished()
    assert handle.manifest.stage("train/0-520").steps == 7
    for region in ("0-520", "500-1000"):
        assert _weights(tmp_path / "run", region) == _weights(tmp_path / "long", region)
    assert _weights(tmp_path / "run", "0-520") != short


def test_one_region_can_be_extended_alone_and_the_other_is_left_alone(
    tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    driver.launch(tiny_plan(REGIONS % 0.6, *QUICK), tmp_path / "run", executor=serial_cluster)
    serial_cluster.jobs.clear()
    driver.extend(tmp_path / "run", ["regions.0.steps=6"], executor=serial_cluster)
    assert serial_cluster.jobs == ["region 0-520"]


def test_a_shorter_training_of_another_run_is_where_ours_begins(
    tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    driver.launch(tiny_plan(REGIONS % 0.6, *QUICK), tmp_path / "short", executor=serial_cluster)
    longer = tiny_plan(REGIONS % 0.6, *QUICK, "training.steps=7")
    driver.launch(longer, tmp_path / "long", reuse=[tmp_path / "short"], executor=serial_cluster)
    driver.launch(longer, tmp_path / "alone", executor=serial_cluster)
    rows = driver.launch(longer, tmp_path / "long", executor=serial_cluster).manifest
    assert rows.stage("draw/0-520").reused_from == str(tmp_path / "short")
    assert rows.stage("train/0-520").reused_from == str(tmp_path / "short")
    assert rows.stage("train/0-520").steps == 7
    assert _weights(tmp_path / "long", "0-520") == _weights(tmp_path / "alone", "0-520")


def test_only_more_steps_extend_a_run(tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path) -> None:
    driver.launch(tiny_plan(REGIONS % 0.6, *QUICK), tmp_path / "run", executor=serial_cluster)
    with pytest.raises(PlanError, match=r"training.learning_rate: 0.001 -> 0.5"):
        driver.extend(tmp_path / "run", ["training.steps=9", "training.learning_rate=0.5"], executor=serial_cluster)
    with pytest.raises(PlanError, match="expected at least the 4 that are made"):
        driver.extend(tmp_path / "run", ["training.steps=3"], executor=serial_cluster)
    with pytest.raises(UserError, match="ebdiff extend"):
        driver.launch(tiny_plan(REGIONS % 0.6, *QUICK, "training.steps=9"), tmp_path / "run", executor=serial_cluster)


def test_what_is_reused_must_be_a_run(tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run here"):
        driver.launch(tiny_plan(*QUICK), tmp_path / "run", reuse=[tmp_path], executor=serial_cluster)


def test_a_shared_draw_is_taken_over_only_for_the_same_regions(
    tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    shared = "draw.scope=shared"
    driver.launch(tiny_plan(REGIONS % 0.6, *QUICK, shared), tmp_path / "first", executor=serial_cluster)
    swapped = "regions=[{train: [0, 520], pruning_ratio: 0.6}, {train: [500, 1000], pruning_ratio: 0.5}]"
    handle = driver.launch(
        tiny_plan(swapped, *QUICK, shared), tmp_path / "second", reuse=[tmp_path / "first"], executor=serial_cluster
    )
    assert handle.manifest.stage("draw/shared").reused_from is None
    assert {name: ticket.pruning_ratio for name, ticket in handle.tickets.items()} == {"0-520": 0.6, "500-1000": 0.5}


def test_a_run_that_took_everything_over_is_a_run_like_any_other(
    tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    driver.launch(tiny_plan(REGIONS % 0.6, *QUICK), tmp_path / "first", executor=serial_cluster)
    other = tiny_plan(REGIONS % 0.6, *QUICK, "sampling.num_images=3")
    serial_cluster.jobs.clear()
    before = driver.launch(other, tmp_path / "second", reuse=[tmp_path / "first"], executor=serial_cluster).manifest
    assert serial_cluster.jobs == []
    assert driver.resume(tmp_path / "second", executor=serial_cluster).manifest.usage == before.usage
    with pytest.raises(UserError, match="different experiment"):
        driver.launch(tiny_plan(REGIONS % 0.6, *QUICK, "seed=5"), tmp_path / "second", executor=serial_cluster)
    driver.extend(tmp_path / "second", ["training.steps=6"], executor=serial_cluster)
    driver.launch(tiny_plan(REGIONS % 0.6, *QUICK, "training.steps=6"), tmp_path / "alone", executor=serial_cluster)
    assert _weights(tmp_path / "second", "0-520") == _weights(tmp_path / "alone", "0-520")
    metrics = tmp_path / "second/train/0-520/metrics.parquet"
    assert metrics.is_file()


def test_an_extension_may_not_end_before_the_newest_checkpoint(
    tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    driver.launch(tiny_plan(REGIONS % 0.6, *QUICK), tmp_path / "run", executor=serial_cluster)
    (tmp_path / "run/train/0-520/checkpoints/step-000000006").mkdir()
    with pytest.raises(PlanError, match="expected at least the 6 that are made"):
        driver.extend(tmp_path / "run", ["training.steps=5"], executor=serial_cluster)


def test_a_launch_that_is_refused_leaves_no_run_behind(
    tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no run here"):
        driver.launch(tiny_plan(*QUICK), tmp_path / "run", reuse=[tmp_path], executor=serial_cluster)
    assert not (tmp_path / "run").exists()
    driver.launch(tiny_plan(REGIONS % 0.6, *QUICK), tmp_path / "run", executor=serial_cluster)
    with pytest.raises(UserError, match="no run here"):
        driver.launch(
            tiny_plan(REGIONS % 0.6, *QUICK, "training.steps=4"),
            tmp_path / "other",
            reuse=[tmp_path],
            executor=serial_cluster,
        )
    assert (tmp_path / "run/manifest.json").is_file()


def test_the_clock_of_a_run_is_that_of_its_launches(
    tiny_plan: MakePlan, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    first = driver.launch(tiny_plan(REGIONS % 0.6, *QUICK), tmp_path / "run", executor=serial_cluster).manifest
    second = driver.extend(tmp_path / "run", ["training.steps=6"], executor=serial_cluster).manifest
    assert second.launches[0] == first.launches[0]
    assert len(second.launches) == 2
    assert second.launches[1].started_at >= first.launches[0].ended_at
    assert driver.resume(tmp_path / "run", executor=serial_cluster).manifest.launches == second.launches
