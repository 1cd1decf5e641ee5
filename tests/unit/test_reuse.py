"""Nothing is computed twice: equal stages of other runs are taken over, and finished experts train on."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MakePlan
from listener import Listener
from serial_cluster import SerialCluster

from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run import reuse
from ebdiff_orchestrator.run.launch import RunHandle
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import inputs_of, outline_jobs
from region_workers.storage.checkpoint_files import find_checkpoint
from region_workers.storage.integrity import file_digest
from schemas.errors import PlanError, UserError
from schemas.job import WEIGHTS_FILE

REGIONS = "regions=[{train: [0, 520], pruning_ratio: %s}, {train: [500, 1000], pruning_ratio: %s}]"
QUICK = ("draw.threshold=1.0", "training.steps=4", "sampling.num_images=2", "sampling.steps=2")
CHANGES = (REGIONS % (0.5, 0.6), *QUICK)

Launch = Callable[..., RunHandle]


def _weights(run_dir: Path, region: str = "0-520") -> str:
    return file_digest(run_dir / "train" / region / "expert" / WEIGHTS_FILE)


@pytest.fixture(scope="module")
def finished(tiny_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    driver.launch(tiny_plan(*CHANGES), folder, executor=SerialCluster())
    return folder


@pytest.fixture
def first(finished: Path, tmp_path: Path) -> Path:
    """A finished run of the plan."""
    return shutil.copytree(finished, tmp_path / "first")


@pytest.fixture
def launch(tiny_plan: MakePlan, tmp_path: Path, serial_cluster: SerialCluster) -> Launch:
    """Launches the plan, with changes, in the folder of that name; the cluster's jobs are counted anew."""

    def run(name: str, *changes: str, reuse: tuple[Path, ...] = ()) -> RunHandle:
        serial_cluster.jobs.clear()
        return driver.launch(tiny_plan(*CHANGES, *changes), tmp_path / name, reuse=reuse, executor=serial_cluster)

    return run


OTHER_RATIO = REGIONS % (0.5, 0.8)


def test_equal_stages_are_taken_over_and_only_the_rest_is_computed(
    first: Path, launch: Launch, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    manifest = launch("second", OTHER_RATIO, reuse=(first,)).manifest
    assert serial_cluster.jobs == ["region 500-1000"]
    assert manifest.finished()
    sources = {name: manifest.stage(name).reused_from for name in ("draw/0-520", "train/0-520", "train/500-1000")}
    assert sources == {"draw/0-520": str(first), "train/0-520": str(first), "train/500-1000": None}
    assert _weights(tmp_path / "second") == _weights(first)
    assert [held.job for held in manifest.usage if held.job.startswith("region")] == ["region 500-1000"]


def test_a_damaged_file_of_the_other_run_is_not_taken_over(
    first: Path, launch: Launch, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    weights, whole = first / "train/0-520/expert" / WEIGHTS_FILE, _weights(first)
    weights.write_bytes(weights.read_bytes()[:-1])
    handle = launch("second", OTHER_RATIO, reuse=(first,))
    assert sorted(serial_cluster.jobs) == ["region 0-520", "region 500-1000"]
    assert handle.manifest.stage("draw/0-520").reused_from is not None
    assert _weights(tmp_path / "second") == whole  # from the last checkpoint, which is whole


def test_an_extended_run_and_one_that_begins_with_a_shorter_training_end_in_the_bits_of_one_long_run(
    first: Path, launch: Launch, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    short = _weights(first)
    launch("longer", "training.steps=7", reuse=(first,))
    manifest = launch("longer", "training.steps=7").manifest
    for stage in ("draw/0-520", "train/0-520"):
        assert manifest.stage(stage).reused_from == str(first)
    extended = driver.extend(first, ["training.steps=7"], executor=serial_cluster).manifest
    launch("alone", "training.steps=7")
    assert extended.finished()
    for run, record in ((first, extended), (tmp_path / "longer", manifest)):
        assert record.stage("train/0-520").steps == 7
        for region in ("0-520", "500-1000"):
            assert _weights(run, region) == _weights(tmp_path / "alone", region)
    assert _weights(first) != short


def test_a_checkpoint_that_a_run_at_work_deletes_while_it_is_copied_is_no_start(
    first: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(*arguments: Any) -> Path | None:
        found = find_checkpoint(*arguments)
        if found is not None:
            shutil.rmtree(found)
        return found

    monkeypatch.setattr(reuse, "find_checkpoint", find)
    manifest = launch("longer", "training.steps=7", reuse=(first,)).manifest
    assert manifest.finished()
    assert manifest.stage("train/0-520").reused_from is None


def test_one_region_can_be_extended_alone_and_the_other_is_left_alone_and_what_happens_is_said(
    first: Path, serial_cluster: SerialCluster
) -> None:
    view = Listener()
    driver.extend(first, ["regions.0.steps=6"], executor=serial_cluster, view=view)
    assert serial_cluster.jobs == ["region 0-520"]
    expected = [
        re.escape("Going on: 3 of 6 stages are done; saved: train/0-520 up to step 4."),
        re.escape("2 jobs, 1 CPU each; free: 1 of 1 process."),
        re.escape("region 0-520: started (attempt 1)."),
        r"train/0-520: done in \d+ s \(6 steps\)\.",
        re.escape("Sampling 2 images in 2 steps ..."),
        re.escape(f"Done: {first}/ensemble (grid: {first}/samples/grid.png)"),
    ]
    assert len(view.said) == len(expected)
    assert all(map(re.fullmatch, expected, view.said)), view.said


def test_only_more_steps_extend_a_run(first: Path, launch: Launch, serial_cluster: SerialCluster) -> None:
    for changes, refusal in (
        (["training.steps=9", "training.learning_rate=0.5"], r"training.learning_rate: 0.001 -> 0.5"),
        (["training.steps=3"], "expected at least the 4 that are made"),
    ):
        with pytest.raises(PlanError, match=refusal):
            driver.extend(first, changes, executor=serial_cluster)
    with pytest.raises(UserError, match="ebdiff extend"):
        launch("first", "training.steps=9")


def test_without_runs_to_reuse_no_checkpoint_is_read(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(*_: object) -> None:
        raise AssertionError("it is hashed whole, under the run's lock")

    (first / "train/0-520/result.json").unlink()
    jobs = outline_jobs(RunHandle(first).manifest.plan, inputs_of(RunHandle(first).manifest))
    monkeypatch.setattr(reuse, "find_checkpoint", find)
    assert reuse.reuse_stages(RunDirectory(first), jobs, (), print) == {}


def test_a_shared_draw_is_taken_over_only_for_the_same_regions(launch: Launch, tmp_path: Path) -> None:
    launch("shared", "draw.scope=shared")
    handle = launch("swapped", REGIONS % (0.6, 0.5), "draw.scope=shared", reuse=(tmp_path / "shared",))
    assert handle.manifest.stage("draw/shared").reused_from is None
    assert {name: ticket.pruning_ratio for name, ticket in handle.tickets.items()} == {"0-520": 0.6, "500-1000": 0.5}


def test_a_run_that_took_everything_over_is_a_run_like_any_other(
    first: Path, launch: Launch, serial_cluster: SerialCluster, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    for folder in (first / "train").glob("*/checkpoints/*"):
        folder.chmod(0o555)
    before = launch("second", "sampling.num_images=3", reuse=(first,)).manifest
    assert serial_cluster.jobs == []
    assert all(folder.stat().st_mode & 0o200 for folder in (second / "train").glob("*/checkpoints/*"))
    assert driver.resume(second, executor=serial_cluster).manifest.usage == before.usage
    with pytest.raises(UserError, match="different experiment"):
        launch("second", "seed=5")
    driver.extend(second, ["training.steps=6"], executor=serial_cluster)
    launch("alone", "training.steps=6")
    assert _weights(second) == _weights(tmp_path / "alone")
    assert (second / "train/0-520/metrics.parquet").is_file()


def test_a_launch_that_is_refused_leaves_no_run_behind(first: Path, launch: Launch, tmp_path: Path) -> None:
    for name, changes in (("nothing", QUICK), ("other", ("seed=1",))):
        with pytest.raises(UserError, match="no run here"):
            launch(name, *changes, reuse=(tmp_path,))
        assert not (tmp_path / name).exists()
    assert (first / "manifest.json").is_file()


def test_the_clock_of_a_run_is_that_of_its_launches(first: Path, serial_cluster: SerialCluster) -> None:
    (launch,) = driver.resume(first, executor=serial_cluster).manifest.launches
    extended = driver.extend(first, ["training.steps=6"], executor=serial_cluster).manifest
    assert extended.launches[0] == launch
    assert len(extended.launches) == 2
    assert extended.launches[1].started_at >= launch.ended_at
    assert driver.resume(first, executor=serial_cluster).manifest.launches == extended.launches
