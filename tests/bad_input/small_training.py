"""A run of one region, trained for a few steps in this process, and what a worker needs to go on with it."""

from pathlib import Path

from places import plan_of

from ebdiff_orchestrator.run.stages import Inputs, outline_jobs, worker_job
from region_workers.data.store import ensure_store
from region_workers.worker.run import run_job
from schemas.job import WorkerJob
from schemas.plan import Plan

ONE_REGION = {"regions": [{"train": [0, 1000], "pruning_ratio": 0.5, "name": "all"}]}


def small_plan(**changes: object) -> Plan:
    """Draws its ticket at the second mask, and trains four steps."""
    draw = {"interval_steps": 1, "queue_length": 2, "max_intervals": 2, "threshold": 1.0}
    training = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.99}
    checkpointing = {"interval_steps": 2}
    return plan_of(**{**ONE_REGION, "draw": draw, "training": training, "checkpointing": checkpointing, **changes})


def job_of(plan: Plan, run_dir: Path, cache_dir: Path) -> WorkerJob:
    """The job of the plan's only region."""
    inputs = Inputs(ensure_store(plan.data, cache_dir).digest)
    (outline,) = outline_jobs(plan, inputs)
    return worker_job(plan, outline, run_dir, inputs)


def train_here(run_dir: Path, cache_dir: Path) -> Path:
    """Draw and train in this process; the run's folder."""
    run_dir.mkdir(parents=True)
    run_job(job_of(small_plan(), run_dir, cache_dir))
    return run_dir
