"""A worker that is asked to stop goes on to the same bits; two workers of a region agree with one."""

import fcntl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MakeJobs, MakePlan
from forked import run_forked
from process_cluster import run_worker, start_worker
from processes import RunningProcess, wait_until
from run_products import products
from safetensors.torch import load_file

from region_workers.storage.durable import write_model
from region_workers.training.failures import StopRequestedError
from region_workers.worker.run import run_job
from schemas.job import OWNERS_FOLDER, STOP_FILE, Note
from schemas.plan import Plan

_TICKET = "draw/0-260/tickets/0-260/ticket.json"
_DRAWN = "draw/0-260/tickets/0-260/expert/diffusion_pytorch_model.safetensors"
_FIRST, _SECOND = "00000001-aaaaaaaa.json", "00000002-bbbbbbbb.json"


def _checkpoint_of(run_dir: Path, stage: str) -> Callable[[], bool]:
    return lambda: any((run_dir / stage / "checkpoints").glob("step-*"))


@pytest.fixture
def plan(tiny_plan: MakePlan) -> Plan:
    draw = ("draw.threshold=0.01", "draw.max_intervals=8", "draw.on_timeout=take_last")
    return tiny_plan("training.steps=4", *draw, "checkpointing.interval_steps=1000")  # what is saved, a stop has saved


def test_a_worker_asked_to_stop_saves_and_goes_on_to_the_same_bits(
    plan: Plan, make_jobs: MakeJobs, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    slow = plan.model_copy(update={"training": plan.training.model_copy(update={"steps": 200})})
    run_worker(make_jobs(slow, whole)[0])

    job = make_jobs(slow, stopped)[0].model_copy(update={"owner": _FIRST})
    process = start_worker(job)
    _until_it_trains(process, stopped)
    write_model(stopped / STOP_FILE, Note(owner=_FIRST))
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert _checkpoint_of(stopped, "train/0-260")()
    assert not (stopped / "train/0-260/result.json").exists()
    run_worker(job.model_copy(update={"owner": _SECOND}))  # of a later driver, to whom that note does not speak

    assert products(stopped) == products(whole)


def test_a_worker_stops_for_a_new_owner_and_for_nobody_else_s_word(
    plan: Plan, make_jobs: MakeJobs, tmp_path: Path
) -> None:
    slow = plan.model_copy(update={"training": plan.training.model_copy(update={"steps": 100_000})})
    job = make_jobs(slow, tmp_path)[0].model_copy(update={"owner": _FIRST})
    process = start_worker(job)
    _until_it_trains(process, tmp_path)
    (tmp_path / OWNERS_FOLDER).mkdir()
    (tmp_path / OWNERS_FOLDER / "notes.json").touch()
    write_model(tmp_path / STOP_FILE, Note(owner=_SECOND))
    time.sleep(3)
    assert process.poll() is None, "it heeded what was no claim, or not for it"
    (tmp_path / OWNERS_FOLDER / _SECOND).touch()
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_worker_of_an_attempt_that_was_given_up_begins_and_writes_nothing(
    plan: Plan, make_jobs: MakeJobs, tmp_path: Path
) -> None:
    job = make_jobs(plan, tmp_path)[0].model_copy(update={"owner": _FIRST, "attempt": 4})
    write_model(tmp_path / STOP_FILE, Note(owner=_FIRST, attempts=(2, 4)))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StopRequestedError):
        run_job(job)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_worker_waits_for_the_stage_that_another_still_holds(plan: Plan, make_jobs: MakeJobs, tmp_path: Path) -> None:
    job = make_jobs(plan, tmp_path)[0]
    stage = tmp_path / "draw/0-260"
    stage.mkdir(parents=True)
    with (stage / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start_worker(job)
        wait_until((stage / "progress.json").exists, "the worker to begin", process)
        time.sleep(3)
        assert {path.name for path in stage.iterdir()} == {".lock", "progress.json"}, "it works beside the other"
        assert process.poll() is None
    process.communicate(timeout=60)
    assert process.returncode == 0


def _until_it_trains(process: RunningProcess, run_dir: Path) -> None:
    wait_until((run_dir / "train/0-260/progress.json").exists, "the training", process, look_s=0.01)


def test_two_workers_of_one_region_share_the_batch_and_agree_with_one_worker(
    plan: Plan, make_jobs: MakeJobs, tmp_path: Path
) -> None:
    # Only the order of the gradient's sums is another: batch, noise and dropout are the same.
    even = plan.model_copy(update={"model": plan.model.model_copy(update={"dropout": 0.2})})
    one, two = tmp_path / "one", tmp_path / "two"
    run_worker(make_jobs(even, one)[0])
    job_file = tmp_path / "job.json"
    job_file.write_text(make_jobs(even, two)[0].model_dump_json())
    torchrun = ("-c", "from torch.distributed.run import main; main()", "--standalone", "--nproc-per-node=2")
    ended = run_forked(*torchrun, "-m", "region_workers", job_file, timeout=300)
    assert ended.returncode == 0, ended.stderr

    single, double = load_file(one / _DRAWN), load_file(two / _DRAWN)
    assert single.keys() == double.keys()
    assert (one / _TICKET).read_text() == (two / _TICKET).read_text()
    for name, tensor in single.items():
        assert (tensor - double[name]).abs().max() < 1e-3, name
