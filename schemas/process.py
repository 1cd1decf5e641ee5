"""What holds for each of our processes: a clock that never steps back, and threads that wait without spinning.

OpenMP reads the environment when torch is first imported, and only then. In a host's process the user decides.
"""

from __future__ import annotations

import os
import time

_BEGAN_S = time.time() - time.monotonic()
PASSIVE_WAIT = {"OMP_WAIT_POLICY": "passive"}  # threads that spin at barriers slow down all that shares their cores


def unix_time() -> float:
    """Unix time in seconds, counted on from the process's start by a clock that nobody sets."""
    return _BEGAN_S + time.monotonic()


def wait_passively() -> None:
    """For this process and what it starts, unless its user has said otherwise."""
    for name, value in PASSIVE_WAIT.items():
        os.environ.setdefault(name, value)
