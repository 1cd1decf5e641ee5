"""Sparse training in processes of its own: killed at an update, or shared by two workers, it ends as one whole run."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import MakeJobs, MakePlan
from drawing_files import VECTOR
from process_cluster import run_worker, start_worker
from safetensors.torch import load_file

from region_workers.storage.tables import read_mask_moves
from region_workers.training.trainer import Trainer
from schemas.job import MASK_MOVES_FILE, WEIGHTS_FILE, WorkerJob

MakeJob = Callable[[str, Path, Sequence[str]], WorkerJob]
_STEPS = 8


@pytest.fixture
def make_job(tiny_plan: MakePlan, make_jobs: MakeJobs) -> MakeJob:
    """A job whose masks move at steps 2 and 4, where checkpoints are made too."""

    def make(method: str, folder: Path, family: Sequence[str]) -> WorkerJob:
        plan = tiny_plan(
            *family,
            "regions=[{train: [0, 1000], pruning_ratio: 0, name: all}]",
            f"sparsity={{method: {method}, sparsity: 0.6, prune_ratio: 0.3, interval_steps: 2}}",
            f"training.steps={_STEPS}",
            "checkpointing={interval_steps: 2, keep: 9}",
            "workers.gpus=0",
        )
        (job,) = make_jobs(plan, folder)
        return job

    return make


def _state(folder: Path, step: int = _STEPS) -> dict[str, torch.Tensor]:
    return load_file(folder / f"train/all/checkpoints/step-{step:09}/state.safetensors")


@pytest.mark.parametrize(("method", "family"), [("rigl", ()), ("magran", ()), ("rigl", VECTOR)])
def test_a_run_killed_around_an_update_and_one_of_two_workers_end_as_a_whole_one(
    make_job: MakeJob, tmp_path: Path, method: str, family: Sequence[str]
) -> None:
    run_worker(make_job(method, tmp_path / "whole", family))
    whole = _state(tmp_path / "whole")
    killed = make_job(method, tmp_path / "killed", family)
    _kill_in_training(killed)
    run_worker(killed)
    found = _state(tmp_path / "killed")
    assert found.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(found[name], whole[name])] == []
    for file in (f"expert/{WEIGHTS_FILE}", MASK_MOVES_FILE):
        assert (tmp_path / "killed/train/all" / file).read_bytes() == (tmp_path / "whole/train/all" / file).read_bytes()
    moves = read_mask_moves((tmp_path / "killed/train/all" / MASK_MOVES_FILE).read_bytes())
    assert sorted(set(moves["step"].to_pylist())) == [0, 2, 4]
    first = _state(tmp_path / "killed", 2)
    run_worker(make_job(method, tmp_path / "shared", family), 2)
    shared = _state(tmp_path / "shared")
    masks = [name for name in whole if name.startswith("mask.")]
    assert [int(shared[name].sum()) for name in masks] == [int(whole[name].sum()) for name in masks]
    differing = sum(int((shared[name] ^ whole[name]).sum()) for name in masks)
    moved = sum(int((first[name] ^ whole[name]).sum()) for name in masks)
    assert moved > 20 * differing, "two workers sum in another order, which may change what is nearly equal"


def _kill_in_training(job: WorkerJob) -> None:
    """By SIGKILL, in a step after the first checkpoint of the training, which waits for it."""
    process = start_worker(job, begin=partial(_die_once_saved, Path(job.run_dir)))
    process.communicate(timeout=180)
    assert process.returncode == -signal.SIGKILL
    assert not (Path(job.run_dir) / "train/all/result.json").exists()


def _die_once_saved(run_dir: Path) -> None:
    """In the worker's process: it makes no step after the third before its first checkpoint is there, nor then."""
    train_step = Trainer.train_step

    def step(trainer: Trainer) -> None:
        if trainer.step == 3:
            while not any(run_dir.glob("train/*/checkpoints/step-*")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        train_step(trainer)

    Trainer.train_step = step  # type: ignore[method-assign]
