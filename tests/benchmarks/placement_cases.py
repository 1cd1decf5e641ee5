"""Random jobs to place, and the shortest makespan of a few of them by brute force."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ebdiff_orchestrator.placement.schedule import Work, speed_up
from ebdiff_orchestrator.placement.search import Options, Piece


@dataclass(frozen=True)
class Case:
    """What the planner is given."""

    works: tuple[Work, ...]
    devices: int
    efficiency: float


def small_case(seed: int) -> Case:
    """2 to 5 jobs on 1 to 4 devices: costs up to 30 times apart, each job with widths of its own."""
    rng = random.Random(seed)
    devices = rng.randint(1, 4)
    works = tuple(
        Work(f"job {index}", 10 ** rng.uniform(0, 1.5), (1, *(k for k in (2, 3, 4) if rng.random() < 0.7)))
        for index in range(rng.randint(2, 5))
    )
    return Case(works, devices, rng.uniform(0.7, 1.0))


def large_case(jobs: int, devices: int) -> Case:
    """Costs up to 30 times apart; any power of two up to 128 devices a job."""
    rng = random.Random(jobs)
    widths = tuple(2**exponent for exponent in range(8))
    works = tuple(Work(f"job {index:04}", 10 ** rng.uniform(0, 1.5), widths) for index in range(jobs))
    return Case(works, devices, 0.9)


def options_of(case: Case) -> list[Options]:
    return [
        tuple(Piece(w.name, k, w.seconds / speed_up(k, case.efficiency)) for k in w.widths if k <= case.devices)
        for w in case.works
    ]


def optimal_makespan(case: Case) -> float:
    """The shortest makespan over every order of starts and every width of every job.

    In the order of its starts, each job on the devices that are free first, no job of a schedule starts later than it
    did; so nothing else has to be tried.
    """
    seconds = {
        (work.name, width): work.seconds / (width * case.efficiency ** math.log2(width))
        for work in case.works
        for width in work.widths
        if width <= case.devices
    }
    best = math.inf
    seen = set()

    def start_next(left: Sequence[Work], free: tuple[float, ...]) -> None:
        nonlocal best
        if not left:
            best = min(best, free[-1])
        names = tuple(work.name for work in left)
        if (names, free) in seen:
            return
        seen.add((names, free))
        for work in left:
            others = [other for other in left if other is not work]
            for width in work.widths:
                if width <= case.devices:
                    end = free[width - 1] + seconds[work.name, width]
                    if end < best:
                        start_next(others, tuple(sorted(free[width:] + (end,) * width)))

    start_next(case.works, (0.0,) * case.devices)
    return best
