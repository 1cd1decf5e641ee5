"""The time of day, as a clock that never steps back within a process: durations are differences of it."""

from __future__ import annotations

import time

_BEGAN_S = time.time() - time.monotonic()


def unix_time() -> float:
    """Unix time in seconds, counted on from the process's start by a clock that nobody sets."""
    return _BEGAN_S + time.monotonic()
