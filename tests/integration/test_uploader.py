"""What a worker of a run in an object store deletes there: only what it has retired itself, whatever befalls it."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import ONE_REGION, MakeJobs, MakePlan
from process_cluster import start_worker
from processes import RunningProcess, wait_until
from pyarrow import fs
from pydantic import ValidationError
from s3_server import BUCKET, s3_server

from region_workers.storage.checkpoint_files import CheckpointInfo
from region_workers.storage.object_store import ObjectStore
from region_workers.training.failures import ScratchLostError, is_retryable, message_for_people
from region_workers.worker.uploader import working_folder
from schemas.job import (
    FAILURE_FILE,
    OWNERS_FOLDER,
    PROGRESS_FILE,
    RESULT_FILE,
    Claim,
    Failure,
    Progress,
    StageResult,
    WorkerJob,
)

Start = Callable[[WorkerJob], RunningProcess]

_LONG = ("training.steps=1000000", "checkpointing.interval_steps=40")
_SAVED = "train/all/checkpoints/"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture
def store(request: pytest.FixtureRequest) -> ObjectStore:
    return ObjectStore(f"s3://{BUCKET}/{request.node.name[:40]}")


@pytest.fixture
def job(store: ObjectStore, tiny_plan: MakePlan, make_jobs: MakeJobs, tmp_path: Path) -> WorkerJob:
    """A job with a scratch folder of the test's own, that ends only if it is made to."""
    made = make_jobs(tiny_plan(ONE_REGION, *_LONG), tmp_path / "run")[0]
    return made.model_copy(update={"run_dir": store.url, "cache_dir": str(tmp_path / "cache")})


@pytest.fixture
def start() -> Iterator[Callable[[WorkerJob], RunningProcess]]:
    """Starts a worker; none outlives the test."""
    started: list[RunningProcess] = []

    def start_one(job: WorkerJob) -> RunningProcess:
        started.append(start_worker(job))
        return started[-1]

    yield start_one
    for worker in started:
        worker.send_signal(signal.SIGKILL)
        worker.communicate(timeout=60)


def _once_saved(store: ObjectStore, worker: RunningProcess) -> set[str]:
    """The keys in the store that stay, once it holds two checkpoints of the training."""
    wait_until(lambda: len(_checkpoints(store)) >= 2, "two checkpoints", worker)
    return {key for key in store.list_keys() if not key.startswith(_SAVED)}


def _once_still(store: ObjectStore) -> tuple[list[str], list[tuple[int, int] | None]]:
    """The keys in the store and their stamps, once none has changed for half a second."""
    while True:
        keys = store.list_keys()
        stamps = store.stamps(keys)
        time.sleep(0.5)
        if store.list_keys() == keys and store.stamps(keys) == stamps:
            return keys, stamps


def _checkpoints(store: ObjectStore) -> list[str]:
    return [key for key in store.list_keys(_SAVED[:-1]) if key.endswith("checkpoint.json")]


def _info(store: ObjectStore, key: str) -> CheckpointInfo:
    """What a checkpoint says of itself; nothing of anybody if it is deleted or replaced just now."""
    try:
        return CheckpointInfo.model_validate_json(store.read(key))
    except (FileNotFoundError, ValidationError):
        return CheckpointInfo(key="", step=0, active_s=0, sha256={})


def test_a_worker_whose_scratch_folder_is_deleted_stops_and_the_store_keeps_every_key(
    store: ObjectStore, job: WorkerJob, start: Start, tmp_path: Path
) -> None:
    job = job.model_copy(update={"owner": "00000001-aaaaaaaa.json"})
    worker = start(job)
    before = _once_saved(store, worker)
    for scratch in (tmp_path / "cache" / "work").iterdir():
        shutil.rmtree(scratch, ignore_errors=True)
    output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 1, output
    assert before <= set(store.list_keys())
    assert len(_checkpoints(store)) >= 2
    failure = Failure.model_validate_json(store.read(f"train/all/{FAILURE_FILE}"))
    assert failure.retryable
    assert (failure.attempt, failure.owner) == (job.attempt, job.owner)
    assert "was deleted while it worked" in failure.message


class _DeletedWhenOpened:
    """A file system in which each object is deleted between being looked up and being read."""

    def __init__(self, files: fs.S3FileSystem) -> None:
        self._files = files

    def open_input_stream(self, path: str) -> pa.NativeFile:
        stream = self._files.open_input_stream(path)
        self._files.delete_file(path)
        return stream


def test_what_another_worker_deletes_while_it_is_fetched_is_not_there(store: ObjectStore, tmp_path: Path) -> None:
    store.write("a", b"1")
    store.write("b", b"2")
    store._files = _DeletedWhenOpened(store._files)
    assert not store.download("a", tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        store.read("b")


def test_what_says_that_files_are_whole_is_sent_after_them_and_a_stage_after_the_one_it_begins_with(
    store: ObjectStore, job: WorkerJob, tmp_path: Path
) -> None:
    saved = "checkpoints/step-000000040"
    files = (
        ("tickets/all/ticket.json", RESULT_FILE),
        (f"{saved}/state.safetensors", f"{saved}/checkpoint.json", RESULT_FILE),
    )
    wanted = [f"{stage}/{name}" for stage, names in zip(job.stages(), files, strict=True) for name in names]
    sent: list[str] = []
    with working_folder(job, tmp_path / "cache" / "work", True) as (_, uploader):
        assert uploader is not None
        uploader._files.publish = sent.append  # type: ignore[method-assign]
        for key in sorted(wanted):
            (uploader.folder / key).parent.mkdir(parents=True, exist_ok=True)
            (uploader.folder / key).touch()
    assert sent == wanted


def test_a_write_that_fails_since_the_scratch_folder_is_gone_is_put_down_to_that(
    store: ObjectStore, job: WorkerJob, tmp_path: Path
) -> None:
    failed = FileNotFoundError(2, "No such file or directory")
    causes = []

    def lose_the_folder() -> None:
        with working_folder(job, tmp_path / "work", sends_all=True) as (_, uploader):
            assert uploader is not None
            assert uploader.cause_of(failed) is failed
            shutil.rmtree(tmp_path / "work")
            causes.append(uploader.cause_of(failed))

    with pytest.raises(ScratchLostError):
        lose_the_folder()
    assert is_retryable(causes[0])
    assert "was deleted while it worked" in message_for_people(causes[0])


def test_two_workers_of_one_job_leave_each_other_s_folders_and_the_store_alone_until_a_newer_attempt_ends_both(
    store: ObjectStore, job: WorkerJob, start: Start, tmp_path: Path
) -> None:
    place = tmp_path / "cache" / "work"
    killed = start(job)
    _once_saved(store, killed)
    (left,) = place.iterdir()
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    before = set(store.list_keys()) - set(store.list_keys(_SAVED[:-1]))
    workers = [start(job)]
    wait_until(lambda: not left.exists(), "what a dead one left to be cleared", workers[0])
    workers.append(start(job))
    wait_until(lambda: len(list(place.iterdir())) >= 2, "both to work", workers[1])
    time.sleep(5)
    assert len(list(place.glob("*/run"))) == 2
    assert [worker.poll() for worker in workers] == [None, None]
    assert before <= set(store.list_keys())
    assert len(_checkpoints(store)) >= 2

    newer = start(job.model_copy(update={"attempt": job.attempt + 1}))  # the driver has given the two up for lost
    wait_until(lambda: None not in [worker.poll() for worker in workers], "both to end", newer)
    assert [worker.returncode for worker in workers] == [130, 130], [worker.communicate() for worker in workers]
    # An older attempt may have looked just before the newer one wrote; what it left is soon written over.
    wait_until(
        lambda: (
            Progress.model_validate_json(store.read(f"train/all/{PROGRESS_FILE}")).attempt == job.attempt + 1
            and all(_info(store, key).attempt == job.attempt + 1 for key in _checkpoints(store))
        ),
        "the newer one's progress and checkpoints alone",
        newer,
    )
    assert newer.poll() is None


def test_a_worker_clears_a_half_sent_checkpoint_and_sends_nothing_more_once_the_run_has_another_owner(
    store: ObjectStore, job: WorkerJob, start: Start
) -> None:
    mine, other = (Claim(number=number, token="aaaaaaaa", host="h", pid=1, lease_s=30.0) for number in (1, 2))
    store.write(f"{OWNERS_FOLDER}/{mine.name}", mine.model_dump_json().encode())
    half = f"{_SAVED}step-000000007/state.safetensors"
    store.write(half, b"an older attempt was killed before it sent checkpoint.json")
    worker = start(job.model_copy(update={"owner": mine.name}))
    _once_saved(store, worker)
    wait_until(lambda: half not in store.list_keys(), "the half checkpoint to be cleared", worker)
    store.write(f"{OWNERS_FOLDER}/{other.name}", other.model_dump_json().encode())
    keys, stamps = _once_still(store)  # what was under way is there
    output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 130, output
    assert store.list_keys() == keys
    assert store.stamps(keys) == stamps
    said = Progress.model_validate_json(store.read(f"train/all/{PROGRESS_FILE}"))
    drawn = StageResult.model_validate_json(store.read(f"draw/all/{RESULT_FILE}"))
    saved = [_info(store, key) for key in _checkpoints(store)]
    assert {(each.attempt, each.owner) for each in (said, drawn, *saved)} == {(job.attempt, mine.name)}
