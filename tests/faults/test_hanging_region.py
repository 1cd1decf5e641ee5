"""A region whose workers wait for each other for ever ends itself and is tried again; the others do not wait for it."""

import fcntl
import signal
from collections.abc import Callable
from pathlib import Path

from conftest import MakeJobs, MakePlan
from forked import ForkedGroup
from listener import Listener
from process_cluster import ProcessCluster, Sabotage, start_worker
from processes import RunningProcess, wait_until

from ebdiff_orchestrator.cluster.executor import Request
from ebdiff_orchestrator.run import launch as driver
from region_workers.data.store import ensure_store
from schemas.job import FAILURE_FILE, Failure, WorkerJob

HANGING, OTHER = "region 0-500", "region 480-1000"
REGIONS = "regions=[{train: [0, 500], pruning_ratio: 0.5}, {train: [480, 1000], pruning_ratio: 0.5}]"


class TwoEach(ProcessCluster):
    """Two workers a region, over gloo."""

    def __init__(self, workers: int, sabotage: Sabotage) -> None:
        super().__init__(workers, sabotage)
        self.request = Request(processes=2, cpus=1.0, gpus=0.0)


def _halt_one_worker(run_dir: Path) -> Callable[[WorkerJob, int, RunningProcess], None]:
    """Halts the second worker of the region at its first attempt, in its training: the first waits for its sums."""

    def sabotage(job: WorkerJob, attempt: int, process: RunningProcess) -> None:
        if job.name != HANGING or attempt > 1:
            return
        checkpoints = run_dir / "train/0-500/checkpoints"
        wait_until(lambda: any(checkpoints.glob("step-*")), "a checkpoint", process, look_s=0.02)
        assert isinstance(process, ForkedGroup)
        process.workers[1].send_signal(signal.SIGSTOP)
        wait_until((run_dir / "train/0-500/failure.json").exists, "the failure's report")
        process.workers[1].send_signal(signal.SIGKILL)  # torchrun would do so after half a minute

    return sabotage


def test_a_region_that_hangs_is_ended_and_tried_again_while_the_other_goes_on(
    tiny_plan: MakePlan, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    cluster = TwoEach(4, _halt_one_worker(run_dir))
    plan = tiny_plan(REGIONS, "training.steps=60", "workers.processes=2", "workers.hang_limit_s=10")
    view = Listener()
    manifest = driver.launch(plan, run_dir, view=view, executor=cluster).manifest
    assert manifest.finished()
    assert cluster.attempts == {HANGING: 2, OTHER: 1}
    told = [line for line in view.said if "Trying again" in line]
    assert any("lost each other" in line or "No step was made" in line for line in told)  # whichever notices first


def test_a_worker_that_hangs_while_it_opens_its_data_ends_itself(
    tiny_plan: MakePlan, make_jobs: MakeJobs, cache_dir: Path, tmp_path: Path
) -> None:
    plan = tiny_plan(REGIONS, "workers.hang_limit_s=2", f"workers.cache_dir={tmp_path / 'cache'}")
    job = make_jobs(plan, tmp_path / "run")[0]
    lock = tmp_path / "cache/images" / f"{ensure_store(plan.data, cache_dir).folder.name}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a builder that gets no further
        process = start_worker(job)
        process.communicate(timeout=60)
    failure = Failure.model_validate_json((tmp_path / "run" / job.stages()[0] / FAILURE_FILE).read_text())
    assert process.returncode == 1
    assert failure.retryable
    assert "no image made ready for 2 s" in failure.message
