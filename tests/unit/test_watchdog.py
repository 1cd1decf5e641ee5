"""A worker that makes no step any more is ended; one that works is not."""

import time
from threading import Event

import pytest

from region_workers.worker.run import Watchdog

LIMIT_S = 0.2


@pytest.mark.parametrize("heartbeats", [0, 1])
def test_a_timeout_counts_from_the_start_and_from_the_last_heartbeat(heartbeats: int) -> None:
    timed_out = Event()
    with Watchdog(LIMIT_S, timed_out.set) as watchdog:
        for _ in range(heartbeats):
            watchdog.heartbeat()
        assert timed_out.wait(20 * LIMIT_S)


def test_there_is_no_timeout_after_the_end() -> None:
    timed_out = Event()
    with Watchdog(5 * LIMIT_S, timed_out.set) as watchdog:
        watchdog.heartbeat()
    assert not timed_out.wait(6 * LIMIT_S)


def test_one_that_works_is_left_alone() -> None:
    timed_out = Event()
    with Watchdog(10 * LIMIT_S, timed_out.set) as watchdog:  # which a busy machine may halt for a second
        for _ in range(50):
            watchdog.heartbeat()
            time.sleep(LIMIT_S / 4)
        assert not timed_out.is_set()
