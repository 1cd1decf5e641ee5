"""Ctrl-C and SIGTERM, noted rather than raised, so that the driver can stop its workers in order."""

import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from types import FrameType
from typing import Any, Self

_SAME_S = 0.5  # `timeout` signals its command and then the command's group: a person asks again later than that


class Interrupts:
    """Counts SIGINT and SIGTERM while it is entered; outside the main thread it does nothing."""

    def __init__(self) -> None:
        self._count, self._noted_at = 0, -_SAME_S
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self._count > 0

    def wait_for(self, futures: Sequence[Future[None]], limit_s: float, poll_s: float) -> bool:
        """Whether these ended within the limit; the user who asks again does not wait for them."""
        deadline = time.monotonic() + limit_s
        while not all(future.done() for future in futures):
            if self._count > 1 or time.monotonic() > deadline:
                return False
            time.sleep(poll_s)
        return True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._noted_at >= _SAME_S:
            self._count, self._noted_at = self._count + 1, now
