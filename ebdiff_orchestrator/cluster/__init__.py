"""The only place that imports ray: connecting, asking what is free, and running one job."""

from ebdiff_orchestrator.cluster.cluster import Cluster, Loss, NodeAnswer
from ebdiff_orchestrator.cluster.connecting import connect, start_early
from ebdiff_orchestrator.cluster.request import Request, request_of, workers_on_node
from ebdiff_orchestrator.cluster.surroundings import check_surroundings, cluster_address
from ebdiff_orchestrator.cluster.trainer import RAY_FOLDER

__all__ = [
    "RAY_FOLDER",
    "Cluster",
    "Loss",
    "NodeAnswer",
    "Request",
    "check_surroundings",
    "cluster_address",
    "connect",
    "request_of",
    "start_early",
    "workers_on_node",
]
