"""What a check found: fine, worth knowing, or wrong, and then what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from schemas.section import Section

Status = Literal["fine", "note", "wrong"]


class Finding(Section):
    """One line of the report."""

    check: str
    status: Status
    what: str
    remedy: str = ""


def fine(check: str, what: str) -> Finding:
    """Nothing is wrong."""
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


def any_wrong(findings: Sequence[Finding]) -> bool:
    """Whether something is wrong."""
    return any(finding.status == "wrong" for finding in findings)
