"""Versions: new enough to be safe, and the same on all nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ebdiff_orchestrator.doctor.facts import OUR_CODE
from ebdiff_orchestrator.doctor.finding import Finding, fine, wrong
from ebdiff_orchestrator.doctor.nodes import Node, answering

# Ray's known ways to run others' code are closed by 2.52 (CVE-2025-62593), 2.55 (CVE-2026-41486) and 2.56
# (CVE-2026-57516), an unguarded DELETE by 2.54 (CVE-2026-27482); from 2.59 on a local Ray asks for a token.
MINIMUM_RAY = (2, 59)
_CHECK = "versions"
_SHOWN = ("python", "torch", "ray", "diffusers", "ebdiff-orchestrator")


def check_versions(nodes: Sequence[Node]) -> list[Finding]:
    """Ray's age, and what differs between nodes."""
    versions = {node.name: facts.versions for node, facts in answering(nodes)}
    findings = _too_old(versions) + _different(versions)
    if findings or not versions:
        return findings
    first = next(iter(versions.values()))
    same = ", ".join(f"{name} {first[name]}" for name in _SHOWN)
    return [fine(_CHECK, f"{same}; the same on {len(versions)} node(s)")]


def _too_old(versions: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    minimum = ".".join(map(str, MINIMUM_RAY))
    old = [f"{name} has {found['ray']}" for name, found in versions.items() if _numbers(found["ray"]) < MINIMUM_RAY]
    remedy = f"Install ray[default,train] >= {minimum} there: older ones let others run code (deploy/README.md)."
    return [wrong(_CHECK, f"Ray: expected at least {minimum}, but {', '.join(old)}", remedy)] if old else []


def _different(versions: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    findings = []
    for package in dict.fromkeys(name for found in versions.values() for name in found):
        by_version: dict[str, list[str]] = {}
        for node, found in versions.items():
            by_version.setdefault(found.get(package, "not known"), []).append(node)
        if len(by_version) > 1:
            told = "; ".join(f"{version} on {', '.join(names)}" for version, names in by_version.items())
            findings.append(wrong(_CHECK, f"{_called(package)} differs: {told}", _remedy(package)))
    return findings


def _called(package: str) -> str:
    return "this project's code" if package == OUR_CODE else package


def _remedy(package: str) -> str:
    if package == OUR_CODE:
        return "Install one commit everywhere, or submit the job with the checkout as --working-dir."
    return f"Install one version of {package} on every node: pip install -c deploy/constraints.txt . does."


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 60) for 2.60.0; empty for what is no version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
