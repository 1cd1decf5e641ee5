"""What must be in a process's environment before torch is first imported there: OpenMP reads it then, and only then.

Only for processes of our own; in a host's the user decides.
"""

from __future__ import annotations

import os

PASSIVE_WAIT = {"OMP_WAIT_POLICY": "passive"}  # threads that spin at barriers slow down all that shares their cores


def wait_passively() -> None:
    """For this process and what it starts, unless its user has said otherwise."""
    for name, value in PASSIVE_WAIT.items():
        os.environ.setdefault(name, value)
