"""The examination: ask every node, then every check."""

import math
import os
import time

from ebdiff_orchestrator.cluster.connecting import cluster_address, connect
from ebdiff_orchestrator.cluster.executor import THIS_MACHINE, Executor, NodeAnswer, ThisProcess
from ebdiff_orchestrator.doctor import nodes as node_checks
from ebdiff_orchestrator.doctor.facts import Node, NodeFacts, clock, gather_facts
from ebdiff_orchestrator.doctor.report import Examination, Finding
from ebdiff_orchestrator.doctor.storage import check_storage
from schemas.plan import Plan, WorkersPlan

_POLL_S = 2.0


def examine(
    plan: Plan | None = None,
    run_dir: str | None = None,
    address: str | None = None,
    expected_nodes: int | None = None,
    wait_s: float = 0.0,
) -> Examination:
    """Ask the nodes of the cluster, or this machine if there is none, and judge by what a plan and its run will need.

    Waits so long for the expected nodes. UserError if the cluster cannot be joined.
    """
    address = cluster_address(address)
    workers = plan.workers if plan else WorkersPlan()
    with connect(workers, 1, address, executor=None if address else ThisProcess()) as machines:
        deadline = time.monotonic() + wait_s
        while len(machines.on_each_node(clock)) < (expected_nodes or 0) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        answers = machines.on_each_node(gather_facts, plan.workers.cache_dir if plan else None)
        nodes = [_node(answer, plan) for answer in answers]
        findings = [
            *node_checks.check_nodes(nodes, expected_nodes),
            *node_checks.check_versions(nodes),
            *node_checks.check_gpus(nodes),
            *node_checks.check_authentication(nodes, address),
            _ask_clocks(machines),
        ]
        if run_dir is not None:
            findings += check_storage(machines, run_dir)
        if plan is not None:
            findings += _check_needs(nodes, plan, run_dir)
    return Examination(findings=tuple(findings), nodes=tuple(nodes))


def _check_needs(nodes: list[Node], plan: Plan, run_dir: str | None) -> list[Finding]:
    from ebdiff_orchestrator.doctor.needs import check_plan, check_space  # imports torch, which takes seconds

    return [*check_plan(nodes, plan), *(check_space(nodes, plan, run_dir) if run_dir is not None else ())]


def _node(answer: NodeAnswer, plan: Plan | None) -> Node:
    facts = NodeFacts.model_validate(answer.value) if answer.problem is None else None
    resources = dict(answer.resources) if answer.node != THIS_MACHINE else _of_embedded_ray(facts, plan)
    return Node(name=answer.node, resources=resources, facts=facts, problem=answer.problem)


def _of_embedded_ray(facts: NodeFacts | None, plan: Plan | None) -> dict[str, float]:
    """What an embedded Ray will hand out: the GPUs that torch can use, and CPUs for all regions at once."""
    workers = plan.workers.processes * len(plan.regions) * plan.workers.cpus if plan else 0.0
    cpus = max(float(os.cpu_count() or 1), math.ceil(workers))
    return {"CPU": cpus, "GPU": float(len(facts.gpus) if facts else 0)}


def _ask_clocks(machines: Executor) -> Finding:
    machines.on_each_node(clock)  # so that no process has to be started while clocks are compared
    before = time.time()
    answers = machines.on_each_node(clock)
    said: dict[str, float] = {answer.node: answer.value for answer in answers if answer.problem is None}
    return node_checks.check_clocks(before, time.time(), said)
