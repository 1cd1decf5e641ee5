"""Clocks: that the nodes agree on the time of day."""

from __future__ import annotations

from collections.abc import Mapping

from ebdiff_orchestrator.doctor.finding import Finding, wrong_or_fine

MOST_SKEW_S = 2.0
_CHECK = "clocks"


def check_clocks(before: float, after: float, said: Mapping[str, float]) -> Finding:
    """Judge what each node's clock said between `before` and `after`, by this machine's own: Unix times in seconds.

    Only what the time that asking took cannot explain counts as skew.
    """
    skews = {node: _skew(before, after, time) for node, time in said.items()}
    off = [f"{node} is {abs(s):.1f} s {'ahead' if s > 0 else 'behind'}" for node, s in skews.items() if _matters(s)]
    took = f"asking took {after - before:.1f} s"
    agree = f"within {MOST_SKEW_S:g} s of each other, as far as can be told ({took})"
    remedy = "Let chrony or ntpd set the time on every node: files' times and progress are compared between nodes."
    return wrong_or_fine(_CHECK, off, remedy, agree)


def _skew(before: float, after: float, time: float) -> float:
    return min(0.0, time - before) or max(0.0, time - after)


def _matters(skew: float) -> bool:
    return abs(skew) > MOST_SKEW_S
