"""Where work is done, and the only place that imports ray: an Executor in this process, or on Ray."""

from ebdiff_orchestrator.cluster.connecting import check_surroundings, cluster_address, connect, start_early
from ebdiff_orchestrator.cluster.executor import (
    THIS_MACHINE,
    Executor,
    Loss,
    NodeAnswer,
    Request,
    ThisProcess,
    request_of,
    run_one,
    too_late,
    waiting_for,
    workers_on_node,
)
from ebdiff_orchestrator.cluster.ray_executor import RayExecutor
from ebdiff_orchestrator.cluster.workers import RAY_FOLDER

__all__ = [
    "RAY_FOLDER",
    "THIS_MACHINE",
    "Executor",
    "Loss",
    "NodeAnswer",
    "RayExecutor",
    "Request",
    "ThisProcess",
    "check_surroundings",
    "cluster_address",
    "connect",
    "request_of",
    "run_one",
    "start_early",
    "too_late",
    "waiting_for",
    "workers_on_node",
]
