"""The examination: ask every node, then every check; of the nodes: versions, clocks, tokens, GPUs."""

import math
import os
import re
import time
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from ebdiff_orchestrator.cluster.connecting import cluster_address, connect
from ebdiff_orchestrator.cluster.executor import THIS_MACHINE, Executor, NodeAnswer, ThisProcess
from ebdiff_orchestrator.doctor.facts import (
    OUR_CODE,
    Examination,
    Finding,
    Node,
    NodeFacts,
    answering,
    clock,
    fine,
    gather_facts,
    note,
    wrong,
    wrong_or_fine,
)
from ebdiff_orchestrator.doctor.storage import check_storage
from schemas.plan import Plan, WorkersPlan

_POLL_S = 2.0
_NODES, _VERSIONS, _AUTHENTICATION, _GPUS = "nodes", "versions", "authentication", "GPUs"
# Ray's known ways to run others' code are closed by 2.52 (CVE-2025-62593), 2.55 (CVE-2026-41486) and 2.56
# (CVE-2026-57516), an unguarded DELETE by 2.54 (CVE-2026-27482); from 2.59 on a local Ray asks for a token.
MINIMUM_RAY = (2, 59)
_SHOWN = ("python", "torch", "ray", "diffusers", "ebdiff-orchestrator")
MOST_SKEW_S = 2.0
_OTHERS = 0o077


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
        answers = machines.on_each_node(gather_facts, workers.cache_dir, address is not None)
        nodes = [_node(answer, plan) for answer in answers]
        findings = [
            *check_nodes(nodes, expected_nodes),
            *check_versions(nodes),
            *check_gpus(nodes),
            *check_authentication(nodes, address),
            _compare_clocks(machines),
        ]
        if run_dir is not None:
            findings += check_storage(machines, run_dir)
        if plan is not None:
            from ebdiff_orchestrator.doctor.needs import check_needs  # imports torch, which takes seconds

            findings += check_needs(nodes, plan, run_dir)
    return Examination(findings=tuple(findings), nodes=tuple(nodes))


def _node(answer: NodeAnswer, plan: Plan | None) -> Node:
    facts: NodeFacts | None = None
    problem = answer.problem
    if problem is None:
        try:
            facts = NodeFacts.model_validate(answer.value)
        except ValidationError:
            problem = "its answer is that of another version"
    resources = dict(answer.resources) if answer.node != THIS_MACHINE else _of_embedded_ray(facts, plan)
    return Node(name=answer.node, resources=resources, facts=facts, problem=problem)


def _of_embedded_ray(facts: NodeFacts | None, plan: Plan | None) -> dict[str, float]:
    """What an embedded Ray will hand out: the GPUs that torch can use, and CPUs for all regions at once."""
    workers = plan.workers.processes * len(plan.regions) * plan.workers.cpus if plan else 0.0
    cpus = max(float(os.cpu_count() or 1), math.ceil(workers))
    return {"CPU": cpus, "GPU": float(len(facts.gpus) if facts else 0)}


def _compare_clocks(machines: Executor) -> Finding:
    machines.on_each_node(clock)  # so that no process has to be started while clocks are compared
    before = time.time()
    answers = machines.on_each_node(clock)
    said: dict[str, float] = {answer.node: answer.value for answer in answers if answer.problem is None}
    return check_clocks(before, time.time(), said)


def check_nodes(nodes: Sequence[Node], expected: int | None) -> list[Finding]:
    """Whether as many nodes as expected have joined, and each can run this package."""
    findings = [
        wrong(
            _NODES,
            f"{node.name}: cannot run a check ({node.problem})",
            "Install the same version of this package on it, in the environment in which Ray was started.",
        )
        for node in nodes
        if node.facts is None
    ]
    if expected is not None and len(nodes) < expected:
        remedy = "See `ray status` and the logs of `ray start` on the nodes that are missing."
        findings.append(wrong(_NODES, f"{len(nodes)} of {expected} nodes have joined", remedy))
    return findings or [fine(_NODES, "; ".join(f"{node.name}: {_counted(node.resources)}" for node in nodes))]


def _counted(resources: Mapping[str, float]) -> str:
    counts = [f"{resources[kind]:g} {kind}" for kind in ("CPU", "GPU") if resources.get(kind)]
    return ", ".join(counts) or "no CPU or GPU"


def check_versions(nodes: Sequence[Node]) -> list[Finding]:
    """Ray's age, and what differs between nodes."""
    versions = {node.name: facts.versions for node, facts in answering(nodes)}
    findings = _too_old(versions) + _different(versions)
    if findings or not versions:
        return findings
    first = next(iter(versions.values()))
    same = ", ".join(f"{name} {first[name]}" for name in _SHOWN)
    return [fine(_VERSIONS, f"{same}; the same on {len(versions)} node(s)")]


def _too_old(versions: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    minimum = ".".join(map(str, MINIMUM_RAY))
    old = [f"{name} has {found['ray']}" for name, found in versions.items() if _numbers(found["ray"]) < MINIMUM_RAY]
    remedy = f"Install ray[default,train] >= {minimum} there: older ones let others run code (deploy/README.md)."
    return [wrong(_VERSIONS, f"Ray: expected at least {minimum}, but {', '.join(old)}", remedy)] if old else []


def _different(versions: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    findings = []
    for package in dict.fromkeys(name for found in versions.values() for name in found):
        by_version: dict[str, list[str]] = {}
        for node, found in versions.items():
            by_version.setdefault(found.get(package, "not known"), []).append(node)
        if len(by_version) > 1:
            told = "; ".join(f"{version} on {', '.join(names)}" for version, names in by_version.items())
            name = package
            remedy = f"Install one version of {name} on every node: pip install -c deploy/constraints.txt . does."
            if package == OUR_CODE:
                name = "this project's code"
                remedy = "Install one commit everywhere, or submit the job with the checkout as --working-dir."
            findings.append(wrong(_VERSIONS, f"{name} differs: {told}", remedy))
    return findings


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 60) for 2.60.0; empty for what is no version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def check_clocks(before: float, after: float, said: Mapping[str, float]) -> Finding:
    """Judge what each node's clock said between `before` and `after`, by this machine's own: Unix times in seconds.

    Only what the time that asking took cannot explain counts as skew.
    """
    skews = {node: min(0.0, time - before) or max(0.0, time - after) for node, time in said.items()}
    off = [
        f"{node} is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
        for node, skew in skews.items()
        if abs(skew) > MOST_SKEW_S
    ]
    took = f"asking took {after - before:.1f} s"
    agree = f"within {MOST_SKEW_S:g} s of each other, as far as can be told ({took})"
    remedy = "Let chrony or ntpd set the time on every node: files' times and progress are compared between nodes."
    return wrong_or_fine("clocks", off, remedy, agree)


def check_authentication(nodes: Sequence[Node], address: str | None) -> list[Finding]:
    """Whether every node of the cluster at `address` asks for a token, and who can read the tokens' files.

    Without an address Ray will be embedded in the run, with a token made for it.
    """
    open_nodes = [node.name for node, facts in answering(nodes) if (facts.auth_mode or "").lower() != "token"]
    findings = []
    if address and open_nodes:
        remedy = "Set RAY_AUTH_MODE=token and the same token on every node before `ray start`, and start Ray anew."
        findings.append(wrong(_AUTHENTICATION, f"Ray asks for no token on {', '.join(open_nodes)}", remedy))
    readable = [
        wrong(
            _AUTHENTICATION,
            f"{node.name}: {facts.token_file} has the mode {facts.token_mode:04o}; others can read the token",
            f"chmod 600 {facts.token_file} (Ray creates it 0644).",
        )
        for node, facts in answering(nodes)
        if facts.token_mode is not None and facts.token_mode & _OTHERS
    ]
    asks = "every node asks for a token" if address else "the embedded Ray asks for a token made for the run"
    return findings + readable or [fine(_AUTHENTICATION, asks)]


def check_gpus(nodes: Sequence[Node]) -> list[Finding]:
    """Whether torch sees on each node as many GPUs as Ray hands out there."""
    findings = []
    for node, facts in answering(nodes):
        handed_out = int(node.resources.get("GPU", 0))
        if facts.cuda_problem is not None:
            remedy = "Update the NVIDIA driver, or install the build of torch that fits it."
            findings.append(wrong(_GPUS, f"{node.name}: torch cannot use CUDA ({facts.cuda_problem})", remedy))
        elif handed_out > len(facts.gpus):
            remedy = "Start Ray there with --num-gpus as there are, and install a build of torch with CUDA."
            findings.append(
                wrong(_GPUS, f"{node.name}: Ray hands out {handed_out}, torch can use {len(facts.gpus)}", remedy)
            )
        elif handed_out < len(facts.gpus):
            remedy = "If they are meant to be used, start Ray there with --num-gpus."
            findings.append(note(_GPUS, f"{node.name}: Ray hands out {handed_out} of {len(facts.gpus)}", remedy))
    return findings or [fine(_GPUS, _gpus_described([facts for _, facts in answering(nodes)]))]


def _gpus_described(facts: Sequence[NodeFacts]) -> str:
    names = [f"{gpu.name} ({gpu.memory_bytes / 2**30:.0f} GiB)" for each in facts for gpu in each.gpus]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none: training runs on CPUs"
