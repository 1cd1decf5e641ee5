"""What a job asks of the cluster, and how many such a node holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.plan import WorkersPlan


@dataclass(frozen=True)
class Request:
    """What one job asks for: `processes` workers of `cpus` CPUs and `gpus` GPUs each."""

    processes: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        each = f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        return each if self.processes == 1 else f"{self.processes} workers of {each}"


def workers_on_node(request: Request, resources: Mapping[str, float]) -> int:
    """How many workers of the request one node holds; a fraction of a GPU cannot be put together from two."""
    fit = int(resources.get("CPU", 0.0) / request.cpus + 1e-6)
    if request.gpus:
        a_gpu = int(1 / request.gpus + 1e-6)
        fit = min(fit, int(resources.get("GPU", 0.0)) * a_gpu)
    return fit


def request_of(workers: WorkersPlan, gpus_in_cluster: float) -> Request:
    """What a job asks for under this plan: `gpus: auto` is one GPU if the cluster has any."""
    gpus = (1.0 if gpus_in_cluster else 0.0) if workers.gpus == "auto" else float(workers.gpus)
    if gpus > 1:
        return Request(processes=int(gpus), cpus=workers.cpus, gpus=1.0)
    return Request(processes=1 if gpus else workers.processes, cpus=workers.cpus, gpus=gpus)
