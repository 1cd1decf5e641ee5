"""A worker that gets no further ends itself, so that nobody waits for it for ever.

A lock that is never freed, a collective operation whose neighbour is gone, or a device that no longer answers, holds
the thread that asked for it; only another thread can notice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Self


class Watchdog:
    """Calls `on_timeout` when `heartbeat` has not been called for `limit_s` seconds, counted from the start."""

    def __init__(self, limit_s: float, on_timeout: Callable[[], None]) -> None:
        self._limit_s, self._on_timeout = limit_s, on_timeout
        self._last_heartbeat = 0.0
        self._over = Event()
        self._watching = Thread(target=self._watch, name="watchdog", daemon=True)

    def heartbeat(self) -> None:
        """Report progress: a step, or part of the preparation for the first."""
        self._last_heartbeat = time.monotonic()

    def __enter__(self) -> Self:
        self.heartbeat()
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._limit_s / 4)):
            if time.monotonic() - self._last_heartbeat > self._limit_s:
                self._on_timeout()
                return


def end_process() -> None:
    """Without unwinding: the thread that hangs would have to take part in it."""
    os._exit(1)
