"""Trackers: what is in them, read back by their own libraries, after every way that a run can go on."""

import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ONE_REGION, MakePlan
from event_files import events_of
from listener import Listener
from processes import wait_until
from serial_cluster import SerialCluster

from ebdiff_orchestrator.cluster.executor import ThisProcess
from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.run.launch import extend, launch
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.metrics_feed import MetricsFeed
from ebdiff_orchestrator.run.ownership import claim_run
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.view import View
from ebdiff_orchestrator.trackers import group
from ebdiff_orchestrator.trackers.group import TENSORBOARD_FOLDER, Series, Trackers
from region_workers.storage.durable import replace_model, write_text
from region_workers.storage.run_files import RunFiles
from region_workers.storage.tables import read_metrics
from region_workers.training.failures import StopRequestedError
from region_workers.worker.run import run_job
from schemas.errors import PlanError, RunStopped
from schemas.job import MetricsRow, RecentMetrics, WorkerJob

STAGES = ("draw", "train")
EVERY_STEP = "logging={interval_steps: 1, trackers: [tensorboard, mlflow]}"


class DriverDies(ThisProcess):
    """The driver is interrupted once its job has stopped in the midst of a stage."""

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        with pytest.raises(StopRequestedError):
            run_job(job, preemption_notice=lambda: True)
        raise KeyboardInterrupt


class WorkerDies(SerialCluster):
    """The job's worker dies in its first attempt, with steps behind its last checkpoint."""

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        if self.jobs:
            return super().run_job(job, workers)
        self.jobs.append(job.name)
        future: Future[None] = Future()
        with pytest.raises(StopRequestedError) as stopped:
            run_job(job, preemption_notice=lambda: True)
        future.set_exception(stopped.value)
        return future


def _rows(run: Path, stage: str) -> dict[int, float]:
    rows = read_metrics(run / stage / "all/metrics.parquet")
    return {int(str(row["step"])): float(str(row["loss"])) for row in rows}


def _in_tensorboard(run: Path, tag: str, region: str = "all") -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events_of(run, region).Scalars(tag)]


def _in_mlflow(run: Path, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient  # a second and more, for this file alone

    client = MlflowClient(tracking_uri=(run / "mlflow").as_uri())
    [experiment] = [each for each in client.search_experiments() if each.name != "Default"]
    [found] = client.search_runs([experiment.experiment_id])
    return [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, name)]


def _in_wandb(file: Path) -> Iterator[tuple[str, str]]:
    """All that was logged: names and JSON values. The file is in blocks of 32 KiB, as LevelDB's logs are."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            for item in record.history.item:
                yield item.key or "/".join(item.nested_key), item.value_json


def _check_every_step_is_there_once(run: Path) -> None:
    for stage in STAGES:
        rows = _rows(run, stage)
        assert len(rows) > 2
        events = _in_tensorboard(run, f"{stage}/loss")
        assert [step for step, _ in events] == list(rows)
        assert [value for _, value in events] == pytest.approx(list(rows.values()), rel=1e-6)
        assert sorted(_in_mlflow(run, f"all/{stage}/loss")) == sorted(rows.items())


@pytest.fixture(autouse=True)
def _keeps_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_what_a_run_measures_is_in_its_trackers_step_by_step(tiny_plan: MakePlan, tmp_path: Path) -> None:
    run = tmp_path / "run"
    plan = tiny_plan(EVERY_STEP, ONE_REGION)
    launch(plan, run, executor=SerialCluster())
    _check_every_step_is_there_once(run)
    distances = dict(_in_tensorboard(run, "masks/largest_distance"))
    assert dict(_in_tensorboard(run, "masks/threshold")) == dict.fromkeys(distances, plan.draw.threshold)
    assert min(distances.values()) <= plan.draw.threshold
    rates = [value for _, value in _in_tensorboard(run, "train/learning_rate")]
    assert rates == pytest.approx([plan.training.learning_rate] * len(rates))
    for stage in STAGES:
        resident = _in_tensorboard(run, f"resources/{stage}/resident_bytes")
        assert [step for step, _ in resident] == list(_rows(run, stage))
        assert all(10e6 < value < 100e9 for _, value in resident)
        assert any(value > 0.05 for _, value in _in_tensorboard(run, f"resources/{stage}/processor_cores"))
        assert len(_in_mlflow(run, f"all/resources/{stage}/resident_bytes")) == len(resident)
    [grid] = events_of(run, "run").Images("samples")
    assert grid.encoded_image_string.startswith(b"\x89PNG")


def test_mlflow_in_the_folder_of_a_run_that_was_moved_keeps_its_pictures_there(tmp_path: Path) -> None:
    from ebdiff_orchestrator.trackers.libraries import MLflow

    first, moved, picture = tmp_path / "first", tmp_path / "moved on", tmp_path / "1.png"
    series = Series("run", "previews")
    picture.write_bytes(b"a picture")
    begun = MLflow(first, "id", "mine", "plan", {})
    begun.scalars(series, {"loss": 1.0}, 0, 0.0)
    begun.close()
    first.rename(moved)
    tracker = MLflow(moved, "id", "mine", "plan", {})
    tracker.image(series, 1, picture, 0.0)
    tracker.close()
    assert not first.exists()
    [shown] = (moved / "mlflow").glob("*/*/artifacts/previews/*")
    assert shown.read_bytes() == b"a picture"
    assert [*_in_mlflow(moved, "run/previews/loss"), *_in_mlflow(moved, "run/previews/shown")] == [(0, 1.0), (1, 1.0)]


@pytest.mark.parametrize("executor", [WorkerDies, DriverDies])
def test_a_killed_run_that_goes_on_and_is_extended_has_every_step_once(
    executor: type[ThisProcess], tiny_plan: MakePlan, tmp_path: Path
) -> None:
    run, plan = tmp_path / "run", tiny_plan(EVERY_STEP, ONE_REGION, "checkpointing.interval_steps=5")
    try:
        launch(plan, run, executor=executor())
    except (RunStopped, KeyboardInterrupt, RuntimeError):
        assert executor is DriverDies
        launch(plan, run, executor=SerialCluster())
    _check_every_step_is_there_once(run)
    extend(run, ["training.steps=15"], executor=SerialCluster())
    assert list(_rows(run, "train"))[-1] == 15
    _check_every_step_is_there_once(run)


class NoWorker(ThisProcess):
    """The driver is interrupted as it starts its first job."""

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        raise KeyboardInterrupt


def test_the_curves_of_a_training_that_extend_begins_anew_are_not_those_of_the_earlier_one(
    tiny_plan: MakePlan, tmp_path: Path
) -> None:
    run, moving = tmp_path / "run", "sparsity={method: magran, sparsity: 0.5, interval_steps: 4}"
    launch(tiny_plan("logging.interval_steps=1", ONE_REGION, moving), run, executor=SerialCluster())
    assert "train/loss" in events_of(run, "all").Tags()["scalars"]
    with pytest.raises(KeyboardInterrupt):
        extend(run, ["training.steps=15"], executor=NoWorker())
    tags = events_of(run, "all").Tags()["scalars"]
    assert "draw/loss" in tags
    assert "train/loss" not in tags


def test_rows_that_came_too_fast_are_read_from_where_they_are_saved(
    tiny_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("region_workers.training.reporter._RECENT_ROWS", 2)
    run = tmp_path / "run"
    launch(tiny_plan(EVERY_STEP, ONE_REGION), run, executor=SerialCluster())
    recent = RecentMetrics.model_validate_json((run / "train/all/recent_metrics.json").read_text())
    assert (recent.after, [row.step for row in recent.rows]) == (10, [11, 12])
    _check_every_step_is_there_once(run)


@pytest.mark.parametrize("synced", [False, True], ids=["not synced", "synced"])
def test_wandb_offline_has_every_step_once_also_of_a_driver_that_was_killed(
    synced: bool, tiny_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, view = tmp_path / "run", Listener()
    plan = tiny_plan("logging={interval_steps: 1, trackers: [wandb]}", ONE_REGION)
    launch(plan, run, executor=SerialCluster(), view=view)
    [before] = run.glob("wandb/offline-run-*/run-*.wandb")
    _wait_for_steps(before, list(_rows(run, "train")))
    if synced:
        before.with_suffix(".wandb.synced").touch()
    else:
        (run / "wandb/handed_over.json").unlink()  # a driver that is killed has handed over more than it could note
    extend(run, ["training.steps=15"], executor=SerialCluster(), view=view)
    assert not [line for line in view.said if "given up" in line or "Trackers" in line]
    [after] = [file for file in run.glob("wandb/offline-run-*/run-*.wandb") if file != before]
    assert before.exists() == synced
    steps = list(_rows(run, "train"))
    assert steps[-1] == 15
    _wait_for_steps(after, [step for step in steps if step > 12] if synced else steps)


def _wait_for_steps(file: Path, expected: list[int]) -> None:
    """Another process writes it, and may not have ended yet."""

    def there() -> bool:
        return [int(value) for key, value in _in_wandb(file) if key == "all/train/updates"] == expected

    wait_until(there, f"the steps {expected}")


class Broken:
    """A tracker that raises or hangs at its third step."""

    def __init__(self, hangs: bool) -> None:
        self._hangs, self._calls = hangs, 0

    def last_step(self, series: Series) -> int:
        return -1

    def scalars(self, series: Series, values: Mapping[str, float], step: int, unix_s: float) -> None:
        self._calls += 1
        if self._calls == 3:
            if self._hangs:
                time.sleep(3600)
            raise OSError(28, "No space left on device")

    def image(self, series: Series, step: int, png: Path, unix_s: float) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(("hangs", "reason"), [(False, "No space left on device"), (True, "not done")])
def test_a_tracker_that_fails_or_hangs_costs_a_line(
    hangs: bool, reason: str, tiny_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "_make", lambda *_: Broken(hangs))
    monkeypatch.setattr(group, "_CLOSE_LIMIT_S", 1.0)
    view = Listener()
    handle = launch(tiny_plan(ONE_REGION), tmp_path / "run", executor=SerialCluster(), view=view)
    assert handle.manifest.finished()
    [told] = [line for line in view.said if line.startswith("tensorboard: given up")]
    assert reason in told


@pytest.mark.parametrize("steps", [5, 1000])
def test_a_tracker_that_is_behind_is_given_up_and_nobody_waits_for_it(
    steps: int, tiny_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "_make", lambda *_: time.sleep(3600))
    monkeypatch.setattr(group, "_MOST_WAITING", 5)
    began = time.monotonic()
    trackers = Trackers(tiny_plan(), tmp_path, "id", "run")
    for step in range(steps):
        trackers.scalars(Series("all", "train"), {"loss": 1.0}, step, 0.0)
    trackers.close()
    assert time.monotonic() - began < 5
    assert trackers.warnings()[0].startswith("tensorboard: given up (it does not answer)")


def test_a_tracker_that_is_not_installed_is_refused_before_the_start(
    tiny_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(PlanError, match=r"logging\.trackers = \['tensorboard', 'mlflow'\]: .*pip install"):
        launch(tiny_plan(EVERY_STEP), tmp_path / "run", executor=SerialCluster())
    assert not (tmp_path / "run").exists()


def test_trackers_are_no_part_of_the_experiment_and_may_be_none(tiny_plan: MakePlan) -> None:
    plain, none = tiny_plan(), tiny_plan("logging.trackers=[]")
    assert plain.experiment_digest() == none.experiment_digest()
    assert "trackers" not in plain.model_dump()["logging"]
    assert load_plan("digits", ["logging.trackers=[mlflow]"]).logging.trackers == ("mlflow",)


def test_rows_of_before_resources_were_measured_are_read_and_a_gpus_are_told(tmp_path: Path) -> None:
    row = dict.fromkeys(MetricsRow.model_fields, 1.0)
    old = {name: value for name, value in row.items() if not name.endswith(("_bytes", "_cores"))}
    table = pa.Table.from_pylist([old])
    pq.write_table(table.set_column(0, "step", table["step"].cast(pa.int64())), tmp_path / "old.parquet")
    [read] = map(MetricsRow.model_validate, read_metrics(tmp_path / "old.parquet"))
    assert (read.resources(), read.progress()) == ({}, MetricsRow.model_validate(old).progress())
    assert set(MetricsRow.model_validate(row).resources()) == set(row) - set(old)


class Elsewhere(SerialCluster):
    """Workers that count as another machine's. `called`: the functions that they ran."""

    on_this_machine = False

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def run_many(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        self.called.append(function.__name__)
        return super().run_many(function, calls)


def test_a_run_that_lacks_nothing_but_its_samples_has_its_workers_draw_and_its_trackers_told(
    tiny_plan: MakePlan, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    launch(tiny_plan(EVERY_STEP, ONE_REGION, "logging.trackers=[]"), run, executor=SerialCluster())
    shutil.rmtree(run / "samples")
    launch(tiny_plan(EVERY_STEP, ONE_REGION), run, executor=(workers := Elsewhere()))
    assert (workers.jobs, workers.called) == ([], ["sample"])
    _check_every_step_is_there_once(run)
    assert len(events_of(run, "run").Images("samples")) == 1


def test_what_feeds_the_trackers_can_stumble_and_the_run_goes_on(tiny_plan: MakePlan, tmp_path: Path) -> None:
    run, view = tmp_path / "run", Listener()
    damaged = run / "previews/000001.json"

    class DamagesARecord(SerialCluster):
        def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
            damaged.parent.mkdir(exist_ok=True)
            damaged.write_text("{")
            return super().run_job(job, workers)

    handle = launch(tiny_plan(EVERY_STEP, ONE_REGION), run, executor=DamagesARecord(), view=view)
    assert handle.manifest.finished()
    assert len([line for line in view.said if line.startswith("Trackers: ")]) == 1
    _check_every_step_is_there_once(run)


def test_the_trackers_of_a_driver_whose_run_was_taken_over_say_nothing(tiny_plan: MakePlan, tmp_path: Path) -> None:
    first, view = RunDirectory(tmp_path), Listener()
    with first.held(print):
        feed = MetricsFeed(Ledger.begin(first, tiny_plan()), cast(Trackers, None), view)
        write_text(tmp_path / TENSORBOARD_FOLDER / "curves", "")
        other = claim_run(RunFiles(tmp_path), take_over=True, say=view.line)
        feed.publish_curves()
        other.release()
    assert view.said == []


def test_rows_at_another_interval_are_told_after_those_of_a_worker_that_was_lost(
    tiny_plan: MakePlan, tmp_path: Path
) -> None:
    run, told = tmp_path / "run", list[int]()

    class Steps:
        def scalars(self, series: Series, values: Mapping[str, float], step: int, unix_s: float) -> None:
            if series.kind == "train":
                told.append(step)

        def warnings(self) -> list[str]:
            return []

    plan = tiny_plan(EVERY_STEP, ONE_REGION)
    Ledger.begin(RunDirectory(run), plan)
    feed = MetricsFeed(Ledger(RunDirectory(run)), cast(Trackers, Steps()), View())
    for steps in ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 8, 12]):  # lost after 7; then on from 4, every 4
        rows = [{**dict.fromkeys(MetricsRow.model_fields, 1.0), "step": step} for step in steps]
        recent = RecentMetrics.model_validate({"after": 0, "rows": rows})
        replace_model(run / "train/all/recent_metrics.json", recent)
        feed.look()
    assert told == [1, 2, 3, 4, 5, 6, 7, 8, 12]
