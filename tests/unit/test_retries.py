"""What costs a region a retry: a lost worker does, unless it got further; a machine that is taken away does not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
from conftest import ONE_REGION
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError
from serial_cluster import SerialCluster

from ebdiff_orchestrator.cluster import Cluster, Request
from ebdiff_orchestrator.run import job_loop
from ebdiff_orchestrator.run import launch as driver
from region_workers.storage.durable import write_model
from region_workers.training.failures import StopRequestedError, is_retryable
from region_workers.worker.run import run_job
from schemas.errors import RunFailed
from schemas.job import PROGRESS_FILE, Progress, WorkerJob
from schemas.plan import Plan

MakePlan = Callable[..., Plan]
UseCluster = Callable[[SerialCluster], None]


class Losing(SerialCluster):
    """Loses the worker of the first attempts, which had gone on from these steps; then works."""

    def __init__(self, *first_steps: int) -> None:
        super().__init__()
        self._first_steps = first_steps

    def start(self, job: WorkerJob, workers: int) -> Future[None]:
        if len(self.jobs) >= len(self._first_steps):
            return super().start(job, workers)
        step = self._first_steps[len(self.jobs)]
        self.jobs.append(job.name)
        said = Progress(stage="draw/all", attempt=job.attempt, step=step + 5, first_step=step)
        write_model(Path(job.run_dir) / "draw/all" / PROGRESS_FILE, said)
        future: Future[None] = Future()
        future.set_exception(RuntimeError("the worker is gone"))
        return future


class Leaving(SerialCluster):
    """Takes the machine away from the first attempts, with notice."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    def start(self, job: WorkerJob, workers: int) -> Future[None]:
        if len(self.jobs) >= self._times:
            return super().start(job, workers)
        self.jobs.append(job.name)
        with pytest.raises(StopRequestedError):
            run_job(job, preemption_notice=lambda: True)
        future: Future[None] = Future()
        future.set_result(None)
        return future


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> UseCluster:
    def put(cluster: SerialCluster) -> None:
        monkeypatch.setattr(driver, "connect", cluster.connect)
        monkeypatch.setattr(job_loop, "_POLL_S", 0.0)

    return put


def test_attempts_that_get_no_further_use_up_the_retries(tiny_plan: MakePlan, use: UseCluster, tmp_path: Path) -> None:
    use(cluster := Losing(0, 0, 0, 0))
    with pytest.raises(RunFailed, match="The worker was lost"):
        driver.launch(tiny_plan(ONE_REGION, "workers.retries=1"), tmp_path / "run")
    assert len(cluster.jobs) == 2


def test_every_attempt_that_got_further_has_the_retries_anew(
    tiny_plan: MakePlan, use: UseCluster, tmp_path: Path
) -> None:
    use(cluster := Losing(0, 5, 10, 15))
    plan = tiny_plan(ONE_REGION, "workers.retries=1", "training.steps=2")
    assert driver.launch(plan, tmp_path / "run").manifest.finished()
    assert len(cluster.jobs) == 5


def test_a_machine_that_is_taken_away_costs_no_retry_and_loses_no_step(
    tiny_plan: MakePlan, use: UseCluster, tmp_path: Path
) -> None:
    plan = tiny_plan(ONE_REGION, "workers.retries=0", "training.steps=2")
    use(SerialCluster())
    whole = driver.launch(plan, tmp_path / "whole").manifest
    use(cluster := Leaving(3))
    manifest = driver.launch(plan, tmp_path / "run").manifest
    assert len(cluster.jobs) == 4
    assert manifest.stage("draw/all").steps == whole.stage("draw/all").steps
    expert = "train/all/expert/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / expert).read_bytes() == (tmp_path / "whole" / expert).read_bytes()


class Stuck(SerialCluster):
    """Takes the machine away from every attempt, saved no further than the one before."""

    def start(self, job: WorkerJob, workers: int) -> Future[None]:
        self.jobs.append(job.name)
        said = Progress(stage="draw/all", attempt=job.attempt, step=3, first_step=3, state="stopped")
        write_model(Path(job.run_dir) / "draw/all" / PROGRESS_FILE, said)
        future: Future[None] = Future()
        future.set_result(None)
        return future


def test_leaving_again_without_a_step_further_costs_retries(
    tiny_plan: MakePlan, use: UseCluster, tmp_path: Path
) -> None:
    use(cluster := Stuck())
    with pytest.raises(RunFailed, match="ended early"):
        driver.launch(tiny_plan(ONE_REGION, "workers.retries=1"), tmp_path / "run")
    assert len(cluster.jobs) == 3, "the first for free, then one and its retry"


def _lost(reason: int) -> ActorDiedError:
    return ActorDiedError(ActorDiedErrorContext(node_death_info=NodeDeathInfo(reason=reason), actor_id=b"0" * 16))


def test_ray_s_word_for_a_lost_worker_is_understood() -> None:
    cluster = Cluster(True, Request(1, 1.0, 0.0))
    preempted, died = _lost(NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED), _lost(NodeDeathInfo.UNEXPECTED_TERMINATION)
    for one, of_several in ((preempted, died), (died, None)):
        expected = "preempted" if one is preempted else "died"
        assert cluster.loss(one) == expected
        assert cluster.loss(WorkerGroupError("lost", {0: one, 1: of_several or ValueError("shapes")})) == expected
    assert cluster.loss(WorkerGroupError("wrong", {0: ValueError("shapes differ")})) is None
    assert cluster.loss(RuntimeError("the program is wrong")) is None
    assert cluster.loss(None) is None


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (KeyError("weights"), False),
        (ValueError("shapes differ"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(28, "No space left on device"), False),
        (PermissionError(13, "Permission denied"), False),
        (OSError(5, "Input/output error"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (TimeoutError("the store does not answer"), True),
        (RuntimeError("cannot schedule new futures after shutdown"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
    ],
    ids=str,
)
def test_errors_of_the_program_are_not_tried_again_and_those_of_the_machine_are(error: Exception, again: bool) -> None:
    assert is_retryable(error) is again
