"""Every region fails alone: retries, lost workers, and a run that ends with what completed saved.

The driver is the real one, and so are the workers, in processes of their own where they are lost or several at once;
only Ray, which the region workers never see, is replaced by a cluster that starts them directly.
"""

import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from conftest import ONE_REGION, MakeJobs, MakePlan
from process_cluster import ProcessCluster
from processes import RunningProcess
from run_products import products
from safetensors.torch import load_file
from serial_cluster import SerialCluster
from small_runs import counted_steps, small_plan

from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run.launch import RunHandle
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.data.batches import BatchSource
from region_workers.storage.integrity import finished_result
from region_workers.storage.tables import read_masks
from region_workers.worker.run import run_job
from schemas.errors import PlanError, RunFailed
from schemas.job import WorkerJob

Launch = Callable[..., RunHandle]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def launch(tiny_plan: MakePlan, run_dir: Path) -> Launch:
    """Launches the tiny plan, with changes, on a cluster."""
    return lambda cluster, *changes: driver.launch(tiny_plan(*changes), run_dir, executor=cluster)


def test_a_lost_worker_is_started_again_and_the_run_finishes(launch: Launch) -> None:
    def kill_once(job: WorkerJob, attempt: int, process: RunningProcess) -> None:
        if job.name == "region 240-460" and attempt == 1:
            process.send_signal(signal.SIGKILL)

    cluster = ProcessCluster(3, kill_once)
    handle = launch(cluster)
    assert handle.manifest.finished()
    assert cluster.attempts == {"region 0-260": 1, "region 240-460": 2, "region 440-1000": 1}
    assert handle.manifest.stage("draw/240-460").attempts == 2
    assert set(handle.tickets) == {"0-260", "240-460", "440-1000"}
    assert handle.ensemble(batch_size=1, output_type="pt").images.shape == (1, 1, 8, 8)


def test_a_region_that_keeps_failing_leaves_the_others_done_and_can_be_resumed(launch: Launch, run_dir: Path) -> None:
    def always_kill(job: WorkerJob, attempt: int, process: RunningProcess) -> None:
        if job.name == "region 0-260":
            process.send_signal(signal.SIGKILL)

    cluster = ProcessCluster(3, always_kill)
    with pytest.raises(RunFailed, match=r"region 0-260: .*\n.*ebdiff resume"):
        launch(cluster, "workers.retries=1")
    assert cluster.attempts["region 0-260"] == 2
    manifest = RunHandle(run_dir).manifest
    assert manifest.stage("draw/0-260").status == "failed"
    assert manifest.stage("train/440-1000").status == "done"
    assert manifest.stage("ensemble").status == "pending"

    again = ProcessCluster(3)
    assert driver.resume(run_dir, executor=again).manifest.finished()
    assert again.attempts == {"region 0-260": 1}


def test_regions_wait_for_room_and_never_exceed_it(launch: Launch) -> None:
    cluster = ProcessCluster(1)
    assert launch(cluster, "training.steps=4").manifest.finished()
    assert cluster.most_running == 1


def test_a_run_whose_ray_has_ended_does_not_wait_for_it(launch: Launch, run_dir: Path) -> None:
    class Ended(ProcessCluster):
        """Loses its node, and with it its worker."""

        def has_ended(self) -> bool:
            return bool(self.attempts) and not self.running

        def workers_at_once(self) -> int:
            return 0 if self.has_ended() else super().workers_at_once()

    def kill(job: WorkerJob, attempt: int, process: RunningProcess) -> None:
        process.send_signal(signal.SIGKILL)

    cluster = Ended(1, kill)
    with pytest.raises(RunFailed, match=r"Ray of this run has ended; .*ebdiff resume"):
        launch(cluster, ONE_REGION)
    assert cluster.attempts == {"region all": 1}
    assert driver.resume(run_dir, executor=ProcessCluster(1)).manifest.finished()


def test_a_draw_that_has_not_converged_fails_without_retries_and_goes_on_with_a_higher_limit(
    launch: Launch, run_dir: Path
) -> None:
    cluster = ProcessCluster(3)
    with pytest.raises(RunFailed, match=r"largest mask distance 0\.\d+, threshold 0.0001\. Raise draw.max_intervals"):
        launch(cluster, ONE_REGION, "draw.threshold=0.0001", "draw.max_intervals=6")
    assert set(cluster.attempts.values()) == {1}
    checkpoints = run_dir / "draw/all/checkpoints"
    assert (checkpoints / "step-000000012").is_dir()

    with pytest.raises(RunFailed, match=r"draw\.max_intervals = 8"):
        launch(cluster, ONE_REGION, "draw.threshold=0.0001", "draw.max_intervals=8")
    masks = read_masks(checkpoints / "step-000000016" / "masks.arrow")
    assert [row["interval"] for row in masks] == list(range(1, 9))
    assert min(int(path.name[5:]) for path in checkpoints.iterdir()) > 3, "the draw began anew"


def test_a_loss_that_is_not_finite_fails_its_region_at_once_and_keeps_the_last_checkpoint(
    launch: Launch, run_dir: Path
) -> None:
    cluster = ProcessCluster(3)
    growing = ("training.learning_rate=1", "training.weight_decay=100", "training.gradient_clip=null")
    with pytest.raises(RunFailed, match=r"of step \d+ .* is not finite"):
        launch(cluster, ONE_REGION, *growing, "draw.interval_steps=5", "checkpointing.interval_steps=1")
    assert set(cluster.attempts.values()) == {1}
    assert RunHandle(run_dir).manifest.stage("draw/all").status == "failed"
    assert any((run_dir / "draw/all/checkpoints").glob("step-*"))


class SpoiltImages(SerialCluster):
    """Gives one region images that are no numbers, from a step of its training on."""

    def __init__(self, region: str, step: int) -> None:
        super().__init__()
        self._region, self._step = region, step

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        read = BatchSource.batch

        def spoilt(batches: BatchSource, step: int, rows: slice = slice(None)) -> torch.Tensor:
            in_training = (Path(job.run_dir) / "draw" / self._region / "result.json").is_file()
            images = read(batches, step, rows)
            return images * torch.nan if in_training and step >= self._step else images

        if job.name != f"region {self._region}":
            return super().run_job(job, workers)
        with patch.object(BatchSource, "batch", spoilt):
            return super().run_job(job, workers)


def test_a_region_whose_loss_is_no_number_keeps_its_last_good_checkpoint_and_the_others_go_on(
    cache_dir: Path, tmp_path: Path
) -> None:
    whole, spoilt = tmp_path / "whole", tmp_path / "spoilt"
    driver.launch(small_plan("training.steps=9"), whole, executor=SerialCluster())
    cluster = SpoiltImages("low", 5)
    with pytest.raises(
        RunFailed, match=r"step 5 .*is not finite; the update was not made and the last good checkpoint"
    ):
        driver.launch(small_plan("training.steps=9"), spoilt, executor=cluster)
    assert sorted(cluster.jobs) == ["region high", "region low"], "it was tried again"
    manifest = RunHandle(spoilt).manifest
    assert manifest.stage("train/low").status == "failed"
    assert manifest.stage("train/high").status == "done"
    saved = sorted((spoilt / "train/low/checkpoints").glob("step-*"))
    assert [path.name for path in saved] == ["step-000000002", "step-000000004"]
    assert all(tensor.isfinite().all() for tensor in load_file(saved[-1] / "state.safetensors").values())

    with counted_steps() as steps:
        driver.resume(spoilt, executor=SerialCluster())
    assert steps == [4, 5, 6, 7, 8], "it did not go on from the last good checkpoint"
    assert products(spoilt) == products(whole)


def test_what_killed_writers_left_is_gone_when_the_run_has_ended(cache_dir: Path, run_dir: Path) -> None:
    Ledger.begin(RunDirectory(run_dir), small_plan())
    left = run_dir / "draw/low/tickets/.partial-aaaaaaaaaaaa-low"
    left.mkdir(parents=True)
    (left / ".partial-bbbbbbbbbbbb-ticket.json").write_text("{")
    (run_dir / ".partial-cccccccccccc-manifest.json").write_text("{")
    (run_dir / ".partial-dddddddddddd-ensemble").mkdir()
    driver.launch(small_plan(), run_dir, executor=SerialCluster())
    assert not list(run_dir.rglob(".partial-*"))


def test_a_launch_refused_for_its_data_leaves_the_directory_free_for_a_right_one(launch: Launch) -> None:
    with pytest.raises(PlanError, match=r"training\.batch_size"):
        launch(SerialCluster(), ONE_REGION, "training.batch_size=99999")
    assert launch(SerialCluster(), ONE_REGION, "training.steps=2").manifest.finished()


def test_a_training_made_from_another_ticket_is_not_taken_for_finished(
    tiny_plan: MakePlan, make_jobs: MakeJobs, tmp_path: Path
) -> None:
    job = make_jobs(tiny_plan("training.steps=2"), tmp_path)[0]
    run_job(job)
    assert job.train is not None
    assert finished_result(tmp_path, job.train) is not None
    ticket = tmp_path / "draw/0-260/tickets/0-260/ticket.json"
    ticket.write_text(ticket.read_text().replace('"interval": ', '"interval": 1'))
    assert finished_result(tmp_path, job.train) is None


def test_a_shared_draw_gives_every_region_its_ticket_from_one_training(launch: Launch) -> None:
    cluster = ProcessCluster(3)
    handle = launch(cluster, "draw.scope=shared", "training.steps=4")
    assert set(cluster.attempts) == {"shared draw", "region 0-260", "region 240-460", "region 440-1000"}
    assert handle.manifest.finished()
    kept = {name: len(t.kept_channels["conv_in"].outputs or ()) for name, t in handle.tickets.items()}
    assert kept["0-260"] > kept["240-460"] > kept["440-1000"]
