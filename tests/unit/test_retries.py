"""What costs a region a retry: a lost worker does, unless it got further; a machine that is taken away does not."""

import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from threading import Timer

import pytest
from conftest import ONE_REGION, MakeJobs, MakePlan
from serial_cluster import SerialCluster

from ebdiff_orchestrator.cluster.executor import Loss, Request
from ebdiff_orchestrator.cluster.ray_executor import RayExecutor
from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run.attempts import Attempt, Budget, Next, what_follows
from ebdiff_orchestrator.run.interrupts import Interrupts
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import Inputs, outline_jobs
from region_workers.storage.durable import write_model
from region_workers.training.failures import StopRequestedError, is_retryable, message_for_people
from region_workers.worker.run import run_job
from schemas.errors import RunFailed, RunStopped
from schemas.job import FAILURE_FILE, PROGRESS_FILE, STOP_FILE, Failure, Note, Progress, ProgressState, WorkerJob
from schemas.plan import Plan

Does = Callable[[WorkerJob], None]


class Scripted(SerialCluster):
    """Its first attempts do these things in the worker's place; then it works."""

    def __init__(self, *attempts: Does) -> None:
        super().__init__()
        self._attempts = attempts

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        if len(self.jobs) >= len(self._attempts):
            return super().run_job(job, workers)
        self.jobs.append(job.name)
        future: Future[None] = Future()
        try:
            self._attempts[len(self.jobs) - 1](job)
        except RuntimeError as error:
            future.set_exception(error)
        else:
            future.set_result(None)
        return future


def _says(job: WorkerJob, step: int, first_step: int, state: ProgressState) -> None:
    said = Progress(
        stage="draw/all", attempt=job.attempt, owner=job.owner, step=step, first_step=first_step, state=state
    )
    write_model(Path(job.run_dir) / "draw/all" / PROGRESS_FILE, said)


def _lost_after(first_step: int) -> Does:
    """The worker is lost five steps after it went on from there."""

    def does(job: WorkerJob) -> None:
        _says(job, first_step + 5, first_step, "running")
        raise RuntimeError("the worker is gone")

    return does


def _leaves(job: WorkerJob) -> None:
    """The machine is taken away, with notice."""
    with pytest.raises(StopRequestedError):
        run_job(job, preemption_notice=lambda: True)


def _leaves_no_further(job: WorkerJob) -> None:
    """The machine is taken away, and no more is saved than by the attempt before."""
    _says(job, 3, 3, "stopped")


@pytest.mark.parametrize(
    "found",
    [
        Failure(stage="draw/all", attempt=1, owner="another", message="", retryable=False, traceback="", at=0.0),
        Note(owner="not what was written"),
    ],
)
def test_a_worker_tells_of_its_failure_whatever_an_earlier_one_has_left(
    tiny_plan: MakePlan, make_jobs: MakeJobs, tmp_path: Path, found: Failure | Note
) -> None:
    job = make_jobs(tiny_plan(ONE_REGION), tmp_path)[0].model_copy(update={"store_digest": "of others", "attempt": 1})
    file = tmp_path / job.stages()[0] / FAILURE_FILE
    write_model(file, found)
    with pytest.raises(RunFailed, match="not those the run began with"):
        run_job(job)
    assert "not those the run began with" in Failure.model_validate_json(file.read_text()).message


@pytest.mark.parametrize(
    ("attempts", "jobs", "failure"),
    [
        ([_lost_after(0)] * 4, 2, "The worker was lost"),
        ([_lost_after(step) for step in (0, 5, 10, 15)], 5, None),  # every one that got further has the retries anew
        ([_leaves_no_further] * 9, 3, "ended early"),  # the first for free, then one and its retry
    ],
)
def test_attempts_that_get_no_further_use_up_the_one_retry(
    attempts: list[Does], jobs: int, failure: str | None, tiny_plan: MakePlan, tmp_path: Path
) -> None:
    cluster = Scripted(*attempts)
    plan = tiny_plan(ONE_REGION, "workers.retries=1", "training.steps=2")
    with pytest.raises(RunFailed, match=failure) if failure else nullcontext():
        assert driver.launch(plan, tmp_path / "run", executor=cluster).manifest.finished()
    assert len(cluster.jobs) == jobs


def test_a_machine_that_is_taken_away_costs_no_retry_and_loses_no_step(tiny_plan: MakePlan, tmp_path: Path) -> None:
    plan = tiny_plan(ONE_REGION, "workers.retries=0", "training.steps=2")
    whole = driver.launch(plan, tmp_path / "whole", executor=SerialCluster()).manifest
    cluster = Scripted(_leaves, _leaves, _leaves)
    manifest = driver.launch(plan, tmp_path / "run", executor=cluster).manifest
    assert len(cluster.jobs) == 4
    assert manifest.stage("draw/all").steps == whole.stage("draw/all").steps
    expert = "train/all/expert/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / expert).read_bytes() == (tmp_path / "whole" / expert).read_bytes()


class Unplaced(SerialCluster):
    """Never finds a place for a job; other runs are at work for a while."""

    def __init__(self, others_s: float) -> None:
        super().__init__()
        self.cancelled: list[str] = []
        self._began, self._others_s = time.monotonic(), others_s

    def others_at_work(self) -> bool:
        return time.monotonic() < self._began + self._others_s

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        return Future()

    def cancel(self, job_name: str) -> None:
        self.cancelled.append(job_name)


@pytest.mark.parametrize("others_s", [0.0, 3.0], ids=["alone", "while other runs work"])
def test_a_job_that_is_given_up_is_cancelled_and_its_workers_are_told(
    tiny_plan: MakePlan, tmp_path: Path, others_s: float
) -> None:
    cluster = Unplaced(others_s)
    with pytest.raises(RunFailed, match="no worker began within"):
        driver.launch(tiny_plan(ONE_REGION, "workers.wait_limit_s=1"), tmp_path / "run", executor=cluster)
    assert not cluster.others_at_work()
    assert cluster.cancelled == ["region all"]
    assert Note.model_validate_json((tmp_path / "run" / STOP_FILE).read_text()).attempts == (1,)


class Interrupted(Unplaced):
    """Ctrl-C comes while a worker is only starting."""

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        signal.raise_signal(signal.SIGINT)
        self.future = super().run_job(job, workers)
        return self.future

    def cancel(self, job_name: str) -> None:
        self.future.set_exception(ChildProcessError("cancelled"))


def test_a_worker_that_was_only_starting_is_ended_and_its_stage_on_record_as_stopped(
    tiny_plan: MakePlan, tmp_path: Path
) -> None:
    cluster = Interrupted(0.0)
    with pytest.raises(RunStopped):
        driver.launch(tiny_plan(ONE_REGION), tmp_path / "run", executor=cluster)
    assert cluster.future.done()
    stages = RunDirectory(tmp_path / "run").read().stages
    assert {name: stage.error for name, stage in stages.items() if stage.error} == {"draw/all": "stopped"}


def test_what_comes_twice_within_a_moment_is_one_interrupt() -> None:
    saved: Future[None] = Future()
    with Interrupts() as interrupts:
        for _ in range(2):  # `timeout` signals its command, then the group
            signal.raise_signal(signal.SIGTERM)
        Timer(0.2, saved.set_result, [None]).start()
        assert interrupts.wait_for([saved], limit_s=10, poll_s=0.05)
        time.sleep(0.6)
        signal.raise_signal(signal.SIGTERM)
        assert not interrupts.wait_for([Future()], limit_s=10, poll_s=10)


def test_ray_s_word_for_a_lost_worker_is_understood() -> None:
    from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
    from ray.exceptions import ActorDiedError
    from ray.train import WorkerGroupError

    def lost(reason: int) -> ActorDiedError:
        return ActorDiedError(ActorDiedErrorContext(node_death_info=NodeDeathInfo(reason=reason), actor_id=b"0" * 16))

    cluster = RayExecutor(True, Request(1, 1.0, 0.0))
    preempted, died = lost(NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED), lost(NodeDeathInfo.UNEXPECTED_TERMINATION)
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
        (RunFailed("/home/speer/images: row 5 is not what was written"), False),
        (RunFailed("/data/before-shutdown: row 5 is not what was written"), False),
    ],
    ids=str,
)
def test_errors_of_the_program_are_not_tried_again_and_those_of_the_machine_are(error: Exception, again: bool) -> None:
    assert is_retryable(error) is again
    if isinstance(error, RunFailed):
        assert message_for_people(error) == str(error)


@pytest.mark.parametrize(
    ("attempts", "retries", "retryable", "state", "loss", "expected"),
    [
        (2, 2, True, "running", None, Next.RETRY),
        (3, 2, True, "running", None, Next.GIVE_UP),
        (1, 2, False, "running", None, Next.GIVE_UP),
        (1, 0, True, "running", "died", Next.GIVE_UP),
        (1, 0, True, "running", "preempted", Next.GO_ON),
        (1, 0, False, "stopped", None, Next.GO_ON),
    ],
)
def test_what_follows_a_failure_is_decided_by_its_kind_and_the_budget(
    attempts: int, retries: int, retryable: bool, state: ProgressState, loss: Loss | None, expected: Next
) -> None:
    region = {"train": [0, 1000], "pruning_ratio": 0.5, "name": "all"}
    (outline,) = outline_jobs(Plan.model_validate({"regions": [region]}), Inputs("store"))
    future: Future[None] = Future()
    future.set_result(None)
    said = Progress(stage="draw/all", state=state, step=4)
    attempt = Attempt(outline, attempts, 1, future, started_at=0.0, progress=said)
    failure = Failure(stage="draw/all", attempt=1, message="", retryable=retryable, traceback="", at=0.0)
    assert what_follows(attempt, Budget(attempts), loss, failure, retries) == expected
