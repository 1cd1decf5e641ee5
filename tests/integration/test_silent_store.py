"""A store that does not answer for a while: everything waits for it, says so, and goes on; after the limit it fails."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest
from conftest import ONE_REGION, MakePlan
from process_cluster import ProcessCluster
from processes import RunningProcess
from s3_server import BUCKET, s3_server
from store_gate import Gate

from ebdiff_orchestrator.run import launch as driver
from region_workers.storage.object_store import SHORT_LIMIT_S, ObjectStore, StoreSilentError
from schemas.job import WorkerJob


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    """The only way to the S3 server."""
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        gate = Gate(int(environment["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]))
        patch.setitem(os.environ, "AWS_ENDPOINT_URL", f"http://127.0.0.1:{gate.port}")
        yield gate


def test_an_operation_waits_for_the_store_and_says_so(
    gate: Gate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ObjectStore(f"s3://{BUCKET}/waits", limit_s=120)
    store.write("there", b"1")
    gate.shut()
    opening = Timer(8, gate.open)
    opening.start()
    store.write("late", b"2")
    opening.join()
    assert store.read("late") == b"2"
    assert store.list_keys() == ["late", "there"]
    said = capsys.readouterr().err
    assert "the store has not answered since" in said
    assert "trying for another 1" in said


def test_a_store_that_stays_silent_is_an_error_for_people_and_what_it_refuses_is_not_tried_again(gate: Gate) -> None:
    store = ObjectStore(f"s3://{BUCKET}/silent", limit_s=1)
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        store.read("nothing")
    with pytest.raises(OSError, match="NO_SUCH_BUCKET"):
        ObjectStore("s3://no-such-bucket/run", limit_s=600).write("key", b"")
    assert time.monotonic() - began < 10
    gate.shut()
    try:
        with pytest.raises(StoreSilentError, match=r"has not answered since .*AWS_ENDPOINT_URL"):
            store.read("nothing")
    finally:
        gate.open()


def test_the_status_of_a_run_in_a_dead_store_is_an_error_for_people_within_seconds(gate: Gate) -> None:
    gate.shut()
    began = time.monotonic()
    command = [sys.executable, "-m", "ebdiff_orchestrator", "status", f"s3://{BUCKET}/dead"]
    try:
        status = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    finally:
        gate.open()
    assert SHORT_LIMIT_S <= time.monotonic() - began < 3 * SHORT_LIMIT_S
    assert status.returncode in (1, 2)
    assert f"s3://{BUCKET}/dead: the store has not answered since" in status.stderr
    assert "AWS_ENDPOINT_URL" in status.stderr.splitlines()[-1]
    assert "Traceback" not in status.stderr


def test_a_launch_and_its_worker_outlast_an_outage_of_the_store(gate: Gate, tiny_plan: MakePlan) -> None:
    url = f"s3://{BUCKET}/outage"

    def cut(job: WorkerJob, attempt: int, process: RunningProcess) -> None:
        store = ObjectStore(url)
        while not store.list_keys("train/all/checkpoints") and process.poll() is None:
            time.sleep(0.1)
        gate.shut()
        time.sleep(SHORT_LIMIT_S + 2)
        gate.open()

    cluster = ProcessCluster(1, cut)
    plan = tiny_plan(ONE_REGION, "training.steps=200", "checkpointing.interval_steps=20", "workers.store_limit_s=120")
    assert driver.launch(plan, url, executor=cluster).manifest.finished()
    assert cluster.attempts == {"region all": 1}
