"""A stand-in for Ray that starts workers as processes of this machine: the driver and the workers are the real."""

import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

from forked import ForkedGroup, ForkedProcess
from processes import RunningProcess

from ebdiff_orchestrator.cluster.executor import ThisProcess
from region_workers.storage.run_files import local_folder
from schemas.job import WorkerJob

Sabotage = Callable[[WorkerJob, int, RunningProcess], None]


def start_worker(job: WorkerJob, workers: int = 1, begin: Callable[[], None] | None = None) -> RunningProcess:
    """The job's worker in a process of its own, or as many as it is to have; one alone may `begin` with something."""
    folder = job.run_dir if local_folder(job.run_dir) else tempfile.mkdtemp()
    job_file = Path(folder) / f"{job.name.replace(' ', '-')}.json"
    job_file.write_text(job.model_dump_json())
    command = ("region_workers", job_file)
    return ForkedGroup(workers, *command) if workers > 1 else ForkedProcess(*command, begin=begin)


def run_worker(job: WorkerJob, workers: int = 1) -> None:
    """`start_worker`, and wait until it has done its work."""
    process = start_worker(job, workers)
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said


class ProcessCluster(ThisProcess):
    """Starts each job as a process on this machine; `sabotage(job, attempt, process)` may do it harm."""

    poll_s = 0.25

    def __init__(self, workers: int, sabotage: Sabotage | None = None) -> None:
        super().__init__()
        self.workers, self.sabotage = workers, sabotage
        self.running = self.most_running = 0
        self.attempts: dict[str, int] = {}
        self.widths: dict[str, list[int]] = {}

    def workers_at_once(self) -> int:
        return self.workers

    def free_workers(self) -> int:
        return self.workers - self.running

    def describe_free(self) -> str:
        return f"{self.free_workers()} of {self.workers} CPU"

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        future: Future[None] = Future()
        self.running += workers
        self.most_running = max(self.most_running, self.running)
        self.attempts[job.name] = self.attempts.get(job.name, 0) + 1
        self.widths.setdefault(job.name, []).append(workers)
        Thread(target=self._run, args=(job, workers, future), daemon=True).start()
        return future

    def _run(self, job: WorkerJob, workers: int, future: Future[None]) -> None:
        try:
            process = start_worker(job, workers)
            if self.sabotage is not None:
                self.sabotage(job, self.attempts[job.name], process)
            said = process.communicate()
        except Exception as error:  # noqa: BLE001 - the test fails by it
            future.set_exception(error)
            return
        finally:
            self.running -= workers
        if process.returncode in (0, 130):  # done, or saved and stopped as asked
            future.set_result(None)
        else:
            future.set_exception(RuntimeError(f"exit code {process.returncode}: {said}"))
