"""Authentication: whoever reaches Ray runs code on it, so it must ask for a token, and the token must be a secret."""

from __future__ import annotations

from collections.abc import Sequence

from ebdiff_orchestrator.doctor.finding import Finding, fine, wrong
from ebdiff_orchestrator.doctor.nodes import Node, answering

_CHECK = "authentication"
_OTHERS = 0o077


def check_authentication(nodes: Sequence[Node], address: str | None) -> list[Finding]:
    """Whether every node of the cluster at `address` asks for a token, and who can read the tokens' files.

    Without an address Ray will be embedded in the run, with a token made for it.
    """
    findings = _open_nodes(nodes) if address else []
    readable = [
        wrong(
            _CHECK,
            f"{node.name}: {facts.token_file} has the mode {facts.token_mode:04o}; others can read the token",
            f"chmod 600 {facts.token_file} (Ray creates it 0644).",
        )
        for node, facts in answering(nodes)
        if facts.token_mode is not None and facts.token_mode & _OTHERS
    ]
    asks = "every node asks for a token" if address else "the embedded Ray asks for a token made for the run"
    return findings + readable or [fine(_CHECK, asks)]


def _open_nodes(nodes: Sequence[Node]) -> list[Finding]:
    without = [node.name for node, facts in answering(nodes) if (facts.auth_mode or "").lower() != "token"]
    if not without:
        return []
    remedy = "Set RAY_AUTH_MODE=token and the same token on every node before `ray start`, and start Ray anew."
    return [wrong(_CHECK, f"Ray asks for no token on {', '.join(without)}", remedy)]
