"""Decisions of the driver: what starts, what waits, what is given up, and which training gets free workers."""

from collections.abc import Mapping
from typing import Any

import pytest

from ebdiff_orchestrator.run.decide import Decision, next_jobs
from ebdiff_orchestrator.run.growth import Growable, next_growth
from ebdiff_orchestrator.run.stages import Inputs, outline_jobs
from schemas.plan import Plan

A, B, C = "region 0-260", "region 240-460", "region 440-1000"
JOBS = outline_jobs(Plan(), Inputs("store"))
SHARED = outline_jobs(Plan.model_validate({"draw": {"scope": "shared"}}), Inputs("store"))
ONE_EACH, WIDE, SHARED_FIRST = {A: 1, B: 1, C: 1}, {B: 1, A: 2, C: 1}, {"shared draw": 1, A: 1, B: 1, C: 1}
TWO_DONE = frozenset(stage for job in JOBS[:2] for stage in job.stages)
NO_DRAW = dict.fromkeys((A, B, C), "needs draw/shared, which failed")

NOTHING: dict[str, Any] = {"done_stages": frozenset(), "running": frozenset(), "failed": frozenset()}
FREE: dict[str, Any] = NOTHING | {"free_workers": 9, "waited_s": 0.0, "wait_limit_s": 60}
CASES: dict[str, tuple[Mapping[str, int], dict[str, Any], Decision]] = {
    "all start at once where there is room, in the order given": (ONE_EACH, {}, Decision(start=(A, B, C))),
    "with room for one the others wait": (ONE_EACH, {"free_workers": 1}, Decision(start=(A,), waiting=(B, C))),
    "a job takes its workers": (WIDE, {"free_workers": 4}, Decision(start=(B, A, C))),
    "and none overtakes it": (WIDE, {"free_workers": 2}, Decision(start=(B,), waiting=(A, C))),
    "a failed region does not keep the others": (ONE_EACH, {"failed": {A}}, Decision(start=(B, C))),
    "a wait has a limit": (ONE_EACH, {"free_workers": 0, "waited_s": 61}, Decision(late=(A, B, C))),
    "but not while own jobs hold the resources": (
        ONE_EACH,
        {"free_workers": 0, "waited_s": 61, "running": {A}},
        Decision(waiting=(B, C)),
    ),
    "everything done or failed is the end": (
        ONE_EACH,
        {"done_stages": TWO_DONE, "failed": {C}},
        Decision(finished=True),
    ),
    "and nothing less": (ONE_EACH, {"done_stages": TWO_DONE}, Decision(start=(C,))),
    "trainings wait for a shared draw": (SHARED_FIRST, {}, Decision(start=("shared draw",))),
    "start after it": (SHARED_FIRST, {"done_stages": {"draw/shared"}}, Decision(start=(A, B, C))),
    "and are given up when it fails": (SHARED_FIRST, {"failed": {"shared draw"}}, Decision(give_up=NO_DRAW)),
}


@pytest.mark.parametrize(("workers", "situation", "expected"), CASES.values(), ids=CASES)
def test_what_is_to_be_done_next(workers: Mapping[str, int], situation: dict[str, Any], expected: Decision) -> None:
    jobs = SHARED if "shared draw" in workers else JOBS
    assert next_jobs(jobs, workers, **FREE | situation) == expected


@pytest.mark.parametrize(
    ("free", "allowed", "restart_s", "expected"),
    [
        (1, (1, 2, 4), 5, ("long", 2)),
        (3, (1, 2, 4), 5, ("long", 4)),
        (1, (1, 4), 5, None),  # three workers cannot share the batch
        (1, (1, 2), 45, None),  # 100 s are not 55 s and a restart
        (0, (1, 2), 0, None),
        (4, (1, 3, 5), 5, ("long", 3)),  # five would be slower
    ],
)
def test_free_workers_go_to_the_job_that_would_end_last_if_that_ends_it_sooner(
    free: int, allowed: tuple[int, ...], restart_s: float, expected: tuple[str, int] | None
) -> None:
    jobs = [Growable("long", 1, 100.0), Growable("short", 1, 10.0)]
    speed_up = {1: 1.0, 2: 1.8, 3: 2.5, 4: 3.2, 5: 2.2}.__getitem__
    assert next_growth(jobs, free, allowed, speed_up, restart_s) == expected
    assert next_growth([], free, allowed, speed_up, restart_s) is None


@pytest.mark.parametrize(("restart_s", "expected"), [(40, ("wide", 4)), (50, None)])  # 56 s and a restart
def test_a_job_with_several_workers_may_get_more(restart_s: float, expected: tuple[str, int] | None) -> None:
    speed_up = {2: 1.8, 4: 3.2}.__getitem__
    assert next_growth([Growable("wide", 2, 100.0)], 2, (1, 2, 4), speed_up, restart_s) == expected
