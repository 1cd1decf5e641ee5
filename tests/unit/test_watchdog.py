"""A worker that makes no step any more is ended; one that works, or has not begun, is not."""

from __future__ import annotations

import time
from threading import Event

from region_workers.watchdog import Watchdog

LIMIT_S = 0.2


def test_silence_after_a_pulse_is_bitten() -> None:
    bitten = Event()
    with Watchdog(LIMIT_S, bitten.set) as watchdog:
        watchdog.pulse()
        assert bitten.wait(20 * LIMIT_S)


def test_no_silence_is_bitten_before_the_first_pulse_or_after_the_end() -> None:
    bitten = Event()
    with Watchdog(LIMIT_S, bitten.set) as watchdog:
        assert not bitten.wait(3 * LIMIT_S)
        watchdog.pulse()
    assert not bitten.wait(3 * LIMIT_S)


def test_one_that_works_is_left_alone() -> None:
    bitten = Event()
    with Watchdog(4 * LIMIT_S, bitten.set) as watchdog:
        for _ in range(30):
            watchdog.pulse()
            time.sleep(LIMIT_S / 4)
        assert not bitten.is_set()
