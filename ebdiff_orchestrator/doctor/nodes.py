"""The nodes of a cluster and whether each one answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ebdiff_orchestrator.doctor.facts import NodeFacts
from ebdiff_orchestrator.doctor.finding import Finding, fine, wrong

_CHECK = "nodes"


@dataclass(frozen=True)
class Node:
    """One node: what Ray says that it has (CPU, GPU), and what it says of itself, or why it could not."""

    name: str
    resources: Mapping[str, float]
    facts: NodeFacts | None
    problem: str | None = None


def check_nodes(nodes: Sequence[Node], expected: int | None) -> list[Finding]:
    """Whether as many nodes as expected have joined, and each can run this package."""
    findings = [
        wrong(
            _CHECK,
            f"{node.name}: cannot run a check ({node.problem})",
            "Install the same version of this package on it, in the environment in which Ray was started.",
        )
        for node in nodes
        if node.facts is None
    ]
    if expected is not None and len(nodes) < expected:
        remedy = "See `ray status` and the logs of `ray start` on the nodes that are missing."
        findings.append(wrong(_CHECK, f"{len(nodes)} of {expected} nodes have joined", remedy))
    return findings or [fine(_CHECK, _described(nodes))]


def answering(nodes: Sequence[Node]) -> list[tuple[Node, NodeFacts]]:
    """The nodes that said something of themselves."""
    return [(node, node.facts) for node in nodes if node.facts is not None]


def _described(nodes: Sequence[Node]) -> str:
    return "; ".join(f"{node.name}: {_counted(node.resources)}" for node in nodes)


def _counted(resources: Mapping[str, float]) -> str:
    counts = [f"{resources[kind]:g} {kind}" for kind in ("CPU", "GPU") if resources.get(kind)]
    return ", ".join(counts) or "no CPU or GPU"
