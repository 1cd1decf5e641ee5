"""The examination as people read it, and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ebdiff_orchestrator.doctor.examine import Examination
from ebdiff_orchestrator.doctor.finding import Finding

_STYLES = {"fine": "green", "note": "yellow", "wrong": "bold red"}


def show(examination: Examination, console: Console) -> None:
    """One row a finding, with its remedy below it, and a line that sums up."""
    table = Table(show_edge=False, pad_edge=False, show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in examination.findings:
        table.add_row(Text(finding.status, _STYLES[finding.status]), finding.check, Text(_told(finding)))
    console.print(table)
    console.print(_summed_up(examination.findings), markup=False, highlight=False)


def as_json(examination: Examination) -> dict[str, Any]:
    """Findings and facts as plain values."""
    return {
        "fine": not any(finding.status == "wrong" for finding in examination.findings),
        "findings": [finding.model_dump() for finding in examination.findings],
        "nodes": [
            {
                "name": node.name,
                "resources": dict(node.resources),
                "facts": node.facts and node.facts.model_dump(mode="json"),
                "problem": node.problem,
            }
            for node in examination.nodes
        ],
    }


def _told(finding: Finding) -> str:
    return f"{finding.what}\n-> {finding.remedy}" if finding.remedy else finding.what


def _summed_up(findings: tuple[Finding, ...]) -> str:
    bad = sum(finding.status == "wrong" for finding in findings)
    return f"{bad} of {len(findings)} checks found something wrong." if bad else f"{len(findings)} checks, all fine."
