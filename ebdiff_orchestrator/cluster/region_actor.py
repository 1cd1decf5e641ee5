"""One job with one worker: a plain Ray actor, without the process group and the helpers that a trainer brings."""

from __future__ import annotations

import math
import time
from typing import Any

from ebdiff_orchestrator.cluster.request import Request
from schemas.job import WorkerJob

_NOTICE_S = 5.0


class RegionWorker:
    """Lives for one job, which itself knows nothing of ray."""

    def run(self, job: str) -> None:
        """Complete the job, or save it as far as it is where the run is to stop."""
        from region_workers.training.failures import StopRequestedError
        from region_workers.worker.run import run_job

        try:
            run_job(WorkerJob.model_validate_json(job), _Notice())
        except StopRequestedError:
            return


def start_actor(request: Request) -> Any:
    """A worker with the request's share of a node; it never comes back by itself: the driver decides on retries."""
    import ray

    actor = ray.remote(num_cpus=request.cpus, num_gpus=request.gpus, max_restarts=0, max_task_retries=0)(RegionWorker)
    return actor.remote()


class _Notice:
    """Whether Ray drains this worker's node, which is about to be taken away; asked for every few seconds at most."""

    def __init__(self) -> None:
        import ray

        self._node = ray.get_runtime_context().get_node_id()
        self._asked_at = -math.inf

    def __call__(self) -> bool:
        from ray._private.state import state  # where Ray Train's own watcher asks
        from ray.exceptions import RayError

        if time.monotonic() - self._asked_at < _NOTICE_S:
            return False
        self._asked_at = time.monotonic()
        try:
            return self._node in state.get_draining_nodes()
        except RayError:  # no answer is no notice
            return False
