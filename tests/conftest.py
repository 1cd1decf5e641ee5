"""Shared by all tests: a plan small enough to run in seconds, and workers as processes of their own.

What imports torch is imported where it is used: the process that only hands tests out is ready ten seconds sooner.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else torch.compile starts processes that import torch
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in our own processes: two threads spin on cores that are taken

import pytest
from drawing_files import VECTOR, with_drawings
from forked import sync_nothing

from schemas.process import quick_imports

if TYPE_CHECKING:
    from serial_cluster import SerialCluster

    from region_workers.data.store import Store
    from schemas.job import WorkerJob
    from schemas.plan import Plan

_IMPORTS = ExitStack()
_IMPORTS.enter_context(quick_imports())  # all that the tests import

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 4, "dropout": 0.1},
    "data": {"random_flip": True},
    "draw": {"interval_steps": 2, "max_intervals": 30, "threshold": 0.5},
    "training": {"steps": 12, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.99},
    "sampling": {"steps": 4, "num_images": 4},
    "checkpointing": {"interval_steps": 3},
    "logging": {"interval_steps": 2},
}


MakePlan = Callable[..., "Plan"]  # see `tiny_plan`
MakeJobs = Callable[["Plan", Path], "list[WorkerJob]"]  # see `make_jobs`

_THREADS = 1  # threads beyond the free cores make small networks wait for each other, up to 20 times as long

ONE_REGION = "regions=[{train: [0, 1000], pruning_ratio: 0.5, name: all}]"


_NOT_QUICK = {  # files of tests/unit that take more than ten seconds each
    "test_costs",
    "test_doctor_command",
    "test_drawing",
    "test_drawing_store",
    "test_ensemble_classes",
    "test_ensemble_diffusers",
    "test_ensemble_latents",
    "test_ensemble_options",
    "test_ensemble_pipeline",
    "test_ensemble_sampling",
    "test_data_store",
    "test_evaluation",
    "test_evaluation_drawings",
    "test_evaluation_parts",
    "test_imports",
    "test_latents_store",
    "test_methods",
    "test_precision",
    "test_previews",
    "test_properties_plan",
    "test_pruning_configs",
    "test_pruning_expert",
    "test_pruning_importance",
    "test_pruning_latent",
    "test_reports_compare",
    "test_reports_estimate",
    "test_reports_placements",
    "test_retries",
    "test_reuse",
    "test_seeds",
    "test_sparse_training",
    "test_study_runs",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that the workers of the tests end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.path.parent.name == "unit" and item.path.stem not in _NOT_QUICK and item.path not in slow:
            item.add_marker("quick")


def pytest_collection_finish() -> None:
    """What is there by now stays: Python need not look through half a million objects again and again."""
    gc.freeze()
    _IMPORTS.close()
    sync_nothing()


def pytest_sessionfinish() -> None:
    """Libraries complain at the end of what is never looked at."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def same_process_settings() -> None:
    """Jobs that ran inside the test's process, in its module's fixtures too, have set threads and determinism."""
    import torch

    torch.set_num_threads(_THREADS)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded images, shared by all tests of a session, workers and the CLI included."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["EBDIFF_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_plan(tmp_path_factory: pytest.TempPathFactory) -> MakePlan:
    """The tiny plan, with `key=value` changes; of drawings with those of VECTOR."""
    drawings = tmp_path_factory.mktemp("drawings")

    def make(*changes: str) -> Plan:
        import copy

        from ebdiff_orchestrator.plans.load import plan_from_values

        values = copy.deepcopy(TINY)
        if VECTOR[1] in changes:  # drawings
            del values["model"], values["data"]
        return plan_from_values(values, with_drawings(changes, drawings))

    return make


@pytest.fixture(scope="session")
def make_jobs(cache_dir: Path) -> MakeJobs:
    """The worker jobs of a plan in a run directory."""

    def make(plan: Plan, run_dir: Path) -> list[WorkerJob]:
        from ebdiff_orchestrator.run.stages import Inputs, outline_jobs, worker_job
        from region_workers.networks.pretrained import find_dense

        run_dir.mkdir(parents=True, exist_ok=True)
        dense = find_dense(plan.model.pretrained).digest() if plan.model.pretrained else None
        inputs = Inputs(store_of(plan, cache_dir).digest, dense)
        return [worker_job(plan, outline, run_dir, inputs) for outline in outline_jobs(plan, inputs)]

    return make


def store_of(plan: Plan, cache_dir: Path) -> Store:
    """The plan's images or drawings."""
    from region_workers.data.drawing_store import ensure_drawings
    from region_workers.data.store import ensure_store

    return (ensure_store if plan.data.drawings is None else ensure_drawings)(plan.data, cache_dir)


@pytest.fixture
def serial_cluster(cache_dir: Path) -> SerialCluster:
    """An executor that runs each job at once in the test's own process."""
    from serial_cluster import SerialCluster

    return SerialCluster()
