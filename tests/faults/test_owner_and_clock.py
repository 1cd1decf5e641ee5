"""Two launches at once, and a clock that steps back: one driver works, and no time that is recorded is negative."""

import importlib
import os
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from run_products import products
from serial_cluster import SerialCluster
from small_runs import power_cut, small_plan

from ebdiff_orchestrator.reports.measures import measures_of
from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.storage.tables import read_metrics
from schemas import process
from schemas.errors import RunFailed, UserError
from schemas.job import WorkerJob
from schemas.manifest import Manifest


@pytest.fixture(scope="module")
def expected(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undisturbed run leaves."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    driver.launch(small_plan(), run_dir, executor=SerialCluster())
    return products(run_dir)


class Busybody(SerialCluster):
    """At each job's start somebody else tries to launch and to resume the same run."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self._run_dir = run_dir
        self.refusals: list[str] = []

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        before = (self._run_dir / "manifest.json").read_bytes()
        for attempt in (partial(driver.launch, small_plan()), driver.resume):
            with pytest.raises(UserError) as refusal:
                attempt(self._run_dir, executor=SerialCluster())
            self.refusals.append(str(refusal.value))
        assert (self._run_dir / "manifest.json").read_bytes() == before
        return super().run_job(job, workers)


def test_a_second_launch_is_refused_by_name_and_the_first_goes_on(expected: dict[str, str], tmp_path: Path) -> None:
    busybody = Busybody(tmp_path / "run")
    driver.launch(small_plan(), tmp_path / "run", executor=busybody)
    assert len(busybody.refusals) == 4
    for refusal in busybody.refusals:
        assert f"process {os.getpid()} on {socket.gethostname()}" in refusal
        assert "give another DIR" in refusal
    assert products(tmp_path / "run") == expected


@contextmanager
def stepping_clock(seed: int) -> Iterator[None]:
    """Within it the time of day jumps back now and then, up to an hour, as for a process that starts within it."""
    right, chosen = time.time, random.Random(seed)
    behind_s = chosen.uniform(0, 3600)

    def wrong() -> float:
        nonlocal behind_s
        if chosen.random() < 0.05:
            behind_s += chosen.uniform(0, 600)
        return right() - behind_s

    with patch.object(time, "time", wrong):
        importlib.reload(process)
        yield
    importlib.reload(process)


@pytest.mark.parametrize("seed", range(3))
def test_a_clock_that_steps_back_breaks_nothing_and_leaves_no_negative_time(
    expected: dict[str, str], tmp_path: Path, seed: int
) -> None:
    run_dir = tmp_path / "run"
    with power_cut(5), pytest.raises(RunFailed):
        driver.launch(small_plan(), run_dir, executor=SerialCluster())
    for step in (3, None):
        with stepping_clock(seed):
            if step is None:
                driver.resume(run_dir, executor=SerialCluster())
            else:
                (run_dir / "draw/low/result.json").unlink()
                with power_cut(step), pytest.raises(RunFailed):
                    driver.resume(run_dir, executor=SerialCluster())
    assert products(run_dir) == expected
    _times_make_sense(RunDirectory(run_dir).read(), run_dir)


def _times_make_sense(manifest: Manifest, run_dir: Path) -> None:
    assert manifest.finished()
    spans = [(held.started_at, held.ended_at) for held in manifest.usage]
    spans += [(launch.started_at, launch.ended_at) for launch in manifest.launches]
    assert len(spans) > 4
    assert all(started <= ended for started, ended in spans), spans
    assert all(record.active_s >= 0 for record in manifest.stages.values())
    measures = measures_of(manifest)
    assert measures.wall_s is not None
    assert measures.wall_s >= 0
    for table in run_dir.glob("*/*/metrics.parquet"):
        assert all(float(str(row["steps_per_s"])) > 0 for row in read_metrics(table)), table
