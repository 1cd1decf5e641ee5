"""Decisions of the driver: what starts, what waits, what is given up."""

from __future__ import annotations

from ebdiff_orchestrator.run.decide import Growable, Situation, next_growth, next_jobs
from ebdiff_orchestrator.run.stages import Inputs, outline_jobs
from schemas.plan import Plan

JOBS = outline_jobs(Plan(), Inputs("store"))
WORKERS = {"region 0-260": 1, "region 240-460": 1, "region 440-1000": 1}


def _situation(
    done: tuple[str, ...] = (),
    running: tuple[str, ...] = (),
    failed: tuple[str, ...] = (),
    free_workers: int = 9,
    waited_s: float = 0.0,
) -> Situation:
    return Situation(frozenset(done), frozenset(running), frozenset(failed), free_workers, waited_s)


def test_all_regions_start_at_once_when_there_is_room_in_the_order_given() -> None:
    decision = next_jobs(JOBS, WORKERS, _situation(), wait_limit_s=60)
    assert decision.start == ("region 0-260", "region 240-460", "region 440-1000")
    assert not decision.waiting


def test_with_room_for_one_the_others_wait() -> None:
    decision = next_jobs(JOBS, WORKERS, _situation(free_workers=1), wait_limit_s=60)
    assert decision.start == ("region 0-260",)
    assert decision.waiting == ("region 240-460", "region 440-1000")


def test_a_job_takes_its_workers_and_none_overtakes_it() -> None:
    wide = {"region 240-460": 1, "region 0-260": 2, "region 440-1000": 1}
    assert next_jobs(JOBS, wide, _situation(free_workers=4), wait_limit_s=60).start == tuple(wide)
    decision = next_jobs(JOBS, wide, _situation(free_workers=2), wait_limit_s=60)
    assert (decision.start, decision.waiting) == (("region 240-460",), ("region 0-260", "region 440-1000"))


def test_free_workers_go_to_the_job_that_would_end_last_if_that_ends_it_sooner() -> None:
    jobs = [Growable("long", 1, 100.0), Growable("short", 1, 10.0)]
    half = {1: 1.0, 2: 1.8, 3: 2.5, 4: 3.2}.__getitem__
    assert next_growth(jobs, 1, (1, 2, 4), half, restart_s=5) == ("long", 2)
    assert next_growth(jobs, 3, (1, 2, 4), half, restart_s=5) == ("long", 4)
    assert next_growth(jobs, 1, (1, 4), half, restart_s=5) is None  # three workers cannot share the batch
    assert next_growth(jobs, 1, (1, 2), half, restart_s=45) is None  # 100 s are not 55 s and a restart
    assert next_growth(jobs, 0, (1, 2), half, restart_s=0) is None
    assert next_growth([], 2, (1, 2), half, restart_s=0) is None
    assert next_growth([Growable("wide", 2, 100.0)], 2, (1, 2, 4), half, restart_s=40) == ("wide", 4)
    assert next_growth([Growable("wide", 2, 100.0)], 2, (1, 2, 4), half, restart_s=50) is None  # 56 s and a restart
    crowded = {1: 1.0, 3: 2.5, 4: 2.2}.__getitem__
    assert next_growth(jobs, 3, (1, 3, 4), crowded, restart_s=5) == ("long", 3)


def test_a_failed_region_does_not_keep_the_others_from_starting() -> None:
    decision = next_jobs(JOBS, WORKERS, _situation(failed=("region 0-260",)), wait_limit_s=60)
    assert decision.start == ("region 240-460", "region 440-1000")


def test_a_wait_is_given_up_after_its_limit_but_not_while_own_jobs_hold_the_resources() -> None:
    late = _situation(free_workers=0, waited_s=61)
    assert set(next_jobs(JOBS, WORKERS, late, wait_limit_s=60).late) == set(WORKERS)
    busy = _situation(free_workers=0, waited_s=61, running=("region 0-260",))
    assert not next_jobs(JOBS, WORKERS, busy, wait_limit_s=60).late


def test_everything_done_or_failed_is_the_end() -> None:
    done = tuple(stage for job in JOBS[:2] for stage in job.stages)
    assert next_jobs(JOBS, WORKERS, _situation(done=done, failed=("region 440-1000",)), wait_limit_s=60).finished
    assert not next_jobs(JOBS, WORKERS, _situation(done=done), wait_limit_s=60).finished


def test_trainings_wait_for_a_shared_draw_and_are_given_up_when_it_fails() -> None:
    plan = Plan.model_validate({"draw": {"scope": "shared"}})
    jobs = outline_jobs(plan, Inputs("store"))
    workers = {job.name: 1 for job in jobs}
    assert next_jobs(jobs, workers, _situation(), wait_limit_s=60).start == ("shared draw",)
    assert len(next_jobs(jobs, workers, _situation(done=("draw/shared",)), wait_limit_s=60).start) == 3
    broken = next_jobs(jobs, workers, _situation(failed=("shared draw",)), wait_limit_s=60)
    assert len(broken.give_up) == 3
    assert not broken.start
    assert broken.give_up["region 0-260"] == "needs draw/shared, which failed"
