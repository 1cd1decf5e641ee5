"""GPUs: that torch can use those that Ray hands out, and that they are enough for the plan."""

from __future__ import annotations

from collections.abc import Sequence

from ebdiff_orchestrator.cluster import Request, request_of, workers_on_node
from ebdiff_orchestrator.doctor.facts import NodeFacts
from ebdiff_orchestrator.doctor.finding import Finding, fine, note, wrong
from ebdiff_orchestrator.doctor.nodes import Node, answering
from schemas.plan import Plan

_CHECK = "GPUs"
_ROOM = "room"


def check_gpus(nodes: Sequence[Node]) -> list[Finding]:
    """Whether torch sees on each node as many GPUs as Ray hands out there."""
    findings = []
    for node, facts in answering(nodes):
        handed_out = int(node.resources.get("GPU", 0))
        if facts.cuda_problem is not None:
            remedy = "Update the NVIDIA driver, or install the build of torch that fits it."
            findings.append(wrong(_CHECK, f"{node.name}: torch cannot use CUDA ({facts.cuda_problem})", remedy))
        elif handed_out > len(facts.gpus):
            remedy = "Start Ray there with --num-gpus as there are, and install a build of torch with CUDA."
            findings.append(
                wrong(_CHECK, f"{node.name}: Ray hands out {handed_out}, torch can use {len(facts.gpus)}", remedy)
            )
        elif handed_out < len(facts.gpus):
            remedy = "If they are meant to be used, start Ray there with --num-gpus."
            findings.append(note(_CHECK, f"{node.name}: Ray hands out {handed_out} of {len(facts.gpus)}", remedy))
    return findings or [fine(_CHECK, _described([facts for _, facts in answering(nodes)]))]


def check_room(nodes: Sequence[Node], plan: Plan) -> Finding:
    """Whether a region finds its workers, and whether all do at once."""
    request = cluster_request(nodes, plan)
    have = sum(workers_on_node(request, node.resources) for node in nodes)
    at_once = have // request.processes
    if at_once == 0:
        asked = f"a region asks for {request}, and the nodes hold {have} such worker(s)"
        return wrong(_ROOM, asked, "Set workers.gpus, workers.cpus or workers.processes lower, or add nodes.")
    regions = len(plan.regions)
    told = f"{min(at_once, regions)} of {regions} region(s) at once, {request} each"
    if plan.placement == "one-per-region" and at_once < regions:
        return note(_ROOM, f"{told}; the others wait", "placement: packed or balanced shares out what there is.")
    return fine(_ROOM, told)


def cluster_request(nodes: Sequence[Node], plan: Plan) -> Request:
    """What a region asks of these nodes."""
    return request_of(plan.workers, sum(node.resources.get("GPU", 0.0) for node in nodes))


def _described(facts: Sequence[NodeFacts]) -> str:
    names = [f"{gpu.name} ({gpu.memory_bytes / 2**30:.0f} GiB)" for each in facts for gpu in each.gpus]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none: training runs on CPUs"
