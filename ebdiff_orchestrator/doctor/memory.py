"""Memory: that the plan's largest network trains on every node that may get it, and a /dev/shm that is large enough."""

from __future__ import annotations

from collections.abc import Sequence

from ebdiff_orchestrator.cluster import Request, workers_on_node
from ebdiff_orchestrator.doctor.finding import Finding, wrong_or_fine
from ebdiff_orchestrator.doctor.footprint import Footprint
from ebdiff_orchestrator.doctor.nodes import Node, answering
from schemas.plan import Plan

_CHECK = "memory"
_SHM = "/dev/shm"
_SHM_OF_NCCL = 1 << 30  # workers of one region on one node exchange gradients through it
_SHM_OF_RAY = 1 << 26
_AS_THE_KERNEL_ROUNDS = 0.95
_LESS = "Lower training.batch_size, raise training.gradient_accumulation, or use training.precision=bf16."


def check_memory(nodes: Sequence[Node], plan: Plan, request: Request, need: Footprint) -> list[Finding]:
    """Whether the GPUs hold the network's training, and the nodes their workers."""
    on_hosts = _on_hosts(nodes, plan, request, need)
    return [_on_devices(nodes, request, need), on_hosts] if request.gpus else [on_hosts]


def check_shm(nodes: Sequence[Node], request: Request, plan: Plan) -> Finding:
    """Whether /dev/shm is there and large enough; a container's default of 64 MiB is not for several GPUs."""
    wide = request.processes > 1 or plan.placement == "balanced" or plan.workers.elastic
    needed = _SHM_OF_NCCL if wide else _SHM_OF_RAY
    has = {node.name: facts.shm_bytes or 0 for node, facts in answering(nodes)}
    small = [f"{name} has {_gib(size)}" for name, size in has.items() if size < needed * _AS_THE_KERNEL_ROUNDS]
    remedy = "Give containers more: docker run --shm-size=8g; Kubernetes: an emptyDir of medium Memory at /dev/shm."
    return wrong_or_fine(_SHM, small, f"Expected {_gib(needed)}. {remedy}", f"at least {_gib(needed)} on every node")


def _on_devices(nodes: Sequence[Node], request: Request, need: Footprint) -> Finding:
    """A fraction of a GPU is a share of its memory too."""
    sharing = max(1, int(1 / request.gpus + 1e-6))
    needed = sharing * need.on_device_bytes()
    small = [
        f"{node.name}: {gpu.name} has {_gib(gpu.memory_bytes)}"
        for node, facts in answering(nodes)
        for gpu in dict.fromkeys(facts.gpus)
        if gpu.memory_bytes < needed
    ]
    asked = f"{sharing} worker(s) on a GPU need about {_gib(needed)}"
    return wrong_or_fine(_CHECK, [f"{asked}; {', '.join(small)}"] if small else [], _LESS, asked)


def _on_hosts(nodes: Sequence[Node], plan: Plan, request: Request, need: Footprint) -> Finding:
    each, most = need.on_host_bytes(request.gpus > 0), request.processes * len(plan.regions)
    problems, largest = [], 0
    for node, facts in answering(nodes):
        workers = min(most, workers_on_node(request, node.resources))
        largest = max(largest, workers)
        if workers * each > facts.memory_bytes:
            problems.append(
                f"{node.name}: {workers} worker(s) need about {_gib(workers * each)}, it has {_gib(facts.memory_bytes)}"
            )
    remedy = "Raise workers.cpus, so that fewer workers share a node, or lower training.batch_size."
    return wrong_or_fine(_CHECK, problems, remedy, f"{largest} worker(s) on a node need about {_gib(largest * each)}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
