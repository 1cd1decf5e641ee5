"""Workers as a run starts them, without Ray: one that is killed and goes on, and two that share a region."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from forked import ForkedProcess
from own_loop import first_job
from processes import RunningProcess, free_port, wait_until
from run_products import products
from safetensors.torch import load_file
from setting import BF16, CHANNELS_LAST, CUDA, EXACT, LIMIT_S, Setting

from region_workers.storage.checkpoint_files import CHECKPOINT_FILE
from schemas.job import CHECKPOINTS_FOLDER, EXPERT_FOLDER, RESULT_FILE, WEIGHTS_FILE, TrainStage, WorkerJob

SHORT_DRAW = ("draw.interval_steps=2", "draw.queue_length=2", "draw.threshold=1.0")
PRECISIONS = {"fp32": (EXACT,), "bf16 channels_last": (EXACT, BF16, CHANNELS_LAST)}


def resume(setting: Setting) -> None:
    """A worker that is killed in its training and started again makes the files of one that was left alone."""
    batch_size, steps, interval = (32, 60, 10) if CUDA else (4, 20, 4)
    length = (
        f"training.batch_size={batch_size}",
        f"training.steps={steps}",
        f"checkpointing.interval_steps={interval}",
    )
    for name, changes in list(PRECISIONS.items())[: 1 if setting.options.quick else None]:
        jobs = [job_of(setting, f"{name} {which}", *SHORT_DRAW, *length, *changes) for which in ("alone", "killed")]
        with started(jobs[0]) as alone, started(jobs[1]) as killed:
            kill_in_training(killed, jobs[1])
            with started(jobs[1]) as resumed:
                finish(alone)
                finish(resumed)
        undisturbed, gone_on = (products(Path(job.run_dir)) for job in jobs)
        made = undisturbed.keys() | gone_on.keys()
        differing = sum(undisturbed.get(path) != gone_on.get(path) for path in made)
        setting.report.add(f"{name}: files that differ, of {len(made)}", differing, at_most=0, at_any_size=True)


def two_workers(setting: Setting) -> None:
    """Two workers of a region train the expert that one trains, but for the rounding of sums."""
    nccl = torch.cuda.device_count() > 1
    how = "NCCL on two GPUs" if nccl else "gloo on the cpu"
    length = ("training.batch_size=32" if nccl else "training.batch_size=4", "training.steps=6")
    jobs = [job_of(setting, name, *SHORT_DRAW, EXACT, *length, small=not nccl) for name in ("one", "two")]
    hidden = {} if nccl or not CUDA else {"CUDA_VISIBLE_DEVICES": ""}
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with (
        started(jobs[0], hidden) as one,
        started(jobs[1], {**hidden, **world, "RANK": "0", "LOCAL_RANK": "0"}) as first,
        started(jobs[1], {**hidden, **world, "RANK": "1", "LOCAL_RANK": "1"}) as second,
    ):
        for process in (first, second, one):
            finish(process)
    one_w, two_w = (load_file(Path(job.run_dir) / training(job).name / EXPERT_FOLDER / WEIGHTS_FILE) for job in jobs)
    one_all, two_all = (torch.cat([weights[name].flatten() for name in sorted(one_w)]) for weights in (one_w, two_w))
    # Of all weights together: where a gradient is nearly 0, rounding turns the way of Adam's first steps about.
    apart = float((one_all - two_all).norm() / one_all.norm())
    setting.report.add(f"{how}: norm of the weights' difference, of theirs", apart, at_most=1e-3, at_any_size=True)
    if not nccl:
        setting.report.skip("NCCL", f"{torch.cuda.device_count()} CUDA devices here, and it takes two")


def job_of(setting: Setting, name: str, *changes: str, small: bool = not CUDA) -> WorkerJob:
    """The job of the preset's first region, drawn soon, to run in a folder of this name."""
    job, _ = first_job(setting.plan("logging.interval_steps=2", *changes, small=small), setting.folder)
    run_dir = setting.folder / name.replace(" ", "-")
    run_dir.mkdir()
    return job.model_copy(update={"run_dir": str(run_dir), "cache_dir": str(setting.folder / "cache")})


def training(job: WorkerJob) -> TrainStage:
    """Its second stage."""
    assert job.train is not None
    return job.train


@contextmanager
def started(job: WorkerJob, environment: Mapping[str, str] | None = None) -> Iterator[RunningProcess]:
    """`python -m region_workers JOB.json`; it does not outlive the context."""
    file, whole = Path(f"{job.run_dir}.json"), {**os.environ, **(environment or {})}
    file.write_text(job.model_dump_json())
    process: RunningProcess
    if CUDA:  # what is forked could not use it: see train_step.py
        command = [sys.executable, "-m", "region_workers", str(file)]
        process = subprocess.Popen(command, env=whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    else:
        process = ForkedProcess("region_workers", file, env=whole)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)


def finish(process: RunningProcess) -> None:
    """Wait for its end, which must be a good one."""
    said = process.communicate(timeout=LIMIT_S)
    if process.returncode != 0:
        last = "".join(each or "" for each in said).strip().splitlines()[-1:]
        raise RuntimeError(f"a worker ended with {process.returncode}: {''.join(last)}")


def kill_in_training(process: RunningProcess, job: WorkerJob) -> None:
    """As soon as its training has a checkpoint."""
    folder = Path(job.run_dir) / training(job).name
    saved = f"{CHECKPOINTS_FOLDER}/*/{CHECKPOINT_FILE}"
    wait_until(lambda: any(folder.glob(saved)), "a checkpoint", process, look_s=0.005, limit_s=LIMIT_S)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    if (folder / RESULT_FILE).exists():
        raise RuntimeError("the worker was done before it could be killed")
