"""What a check found, fine, worth knowing, or wrong and then what to do; for people and as JSON."""

from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ebdiff_orchestrator.doctor.facts import Node
from schemas.section import Section

Status = Literal["fine", "note", "wrong"]
_STYLES = {"fine": "green", "note": "yellow", "wrong": "bold red"}


class Finding(Section):
    """One line of the report."""

    check: str
    status: Status
    what: str
    remedy: str = ""


class Examination(Section):
    """The findings, and the nodes that they are about."""

    findings: tuple[Finding, ...]
    nodes: tuple[Node, ...]

    @property
    def wrong(self) -> int:
        """How many checks found something wrong."""
        return sum(finding.status == "wrong" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {"fine": not self.wrong, **self.model_dump(mode="json")}


def fine(check: str, what: str) -> Finding:
    return Finding(check=check, status="fine", what=what)


def note(check: str, what: str, remedy: str = "") -> Finding:
    """Worth knowing; no reason to stop."""
    return Finding(check=check, status="note", what=what, remedy=remedy)


def wrong(check: str, what: str, remedy: str) -> Finding:
    """Something that a long run would suffer from."""
    return Finding(check=check, status="wrong", what=what, remedy=remedy)


def wrong_or_fine(check: str, problems: Sequence[str], remedy: str, what: str) -> Finding:
    """All the problems as one finding; `what` if there are none."""
    return wrong(check, "; ".join(problems), remedy) if problems else fine(check, what)


def show(examination: Examination, console: Console) -> None:
    """One row a finding, with its remedy below it, and a line that sums up."""
    table = Table(show_edge=False, pad_edge=False, show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in examination.findings:
        what = f"{finding.what}\n-> {finding.remedy}" if finding.remedy else finding.what
        table.add_row(Text(finding.status, _STYLES[finding.status]), finding.check, Text(what))
    console.print(table)
    total, bad = len(examination.findings), examination.wrong
    summary = f"{bad} of {total} checks found something wrong." if bad else f"{total} checks, all fine."
    console.print(summary, highlight=False)
