"""An executor for tests that runs each job at once in the test's own process, and counts them."""

from concurrent.futures import Future

from ebdiff_orchestrator.cluster.executor import ThisProcess
from schemas.job import WorkerJob


class SerialCluster(ThisProcess):
    """`jobs`: what was started."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[str] = []

    def run_job(self, job: WorkerJob, workers: int) -> Future[None]:
        self.jobs.append(job.name)
        return super().run_job(job, workers)
