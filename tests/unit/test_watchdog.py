"""A worker that makes no step any more is ended; one that works is not."""

from __future__ import annotations

import time
from threading import Event

import pytest

from region_workers.worker.watchdog import Watchdog

LIMIT_S = 0.2


@pytest.mark.parametrize("pulses", [0, 1])
def test_silence_is_bitten_from_the_start_and_after_a_pulse(pulses: int) -> None:
    bitten = Event()
    with Watchdog(LIMIT_S, bitten.set) as watchdog:
        for _ in range(pulses):
            watchdog.pulse()
        assert bitten.wait(20 * LIMIT_S)


def test_no_silence_is_bitten_after_the_end() -> None:
    bitten = Event()
    with Watchdog(LIMIT_S, bitten.set) as watchdog:
        watchdog.pulse()
    assert not bitten.wait(3 * LIMIT_S)


def test_one_that_works_is_left_alone() -> None:
    bitten = Event()
    with Watchdog(4 * LIMIT_S, bitten.set) as watchdog:
        for _ in range(30):
            watchdog.pulse()
            time.sleep(LIMIT_S / 4)
        assert not bitten.is_set()
