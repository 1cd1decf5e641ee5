"""The planner: schedules that devices can run, the paper's figures, and near the optimum at every size."""

import random
import time
from itertools import pairwise

import pytest
from benchmarks.placement_cases import Case, large_case, optimal_makespan, options_of, small_case
from conftest import MakePlan

from ebdiff_orchestrator.placement.schedule import (
    CHOICES,
    Placement,
    Schedule,
    Work,
    allowed_widths,
    place,
    speed_up,
)
from ebdiff_orchestrator.placement.search import lower_bound
from ebdiff_orchestrator.placement.works import works_of
from schemas.errors import UserError

PAPER = [Work("30%", 3.39, (1, 2, 4)), Work("60%", 1.49, (1, 2, 4)), Work("80%", 0.375, (1, 2, 4))]


def _placed(case: Case, choice: Placement) -> Schedule:
    return place(case.works, case.devices, choice, case.efficiency)


def test_the_papers_way_leaves_three_gpus_busy_half_of_the_time() -> None:
    paper = place(PAPER, 3, "one-per-region", 1.0)
    assert paper.busy == pytest.approx(0.52, abs=0.005)
    assert paper.rented_s == pytest.approx(3 * 3.39)
    packed = place(PAPER, 3, "packed", 1.0)
    assert (packed.devices, packed.makespan_s) == (2, paper.makespan_s)
    balanced = place(PAPER, 3, "balanced", 1.0)
    assert paper.makespan_s / balanced.makespan_s == pytest.approx(1.82, abs=0.005)
    assert balanced.widths == {"30%": 2, "60%": 1, "80%": 1}
    assert balanced.held_s == pytest.approx(3.39 + 1.49 + 0.375)


def test_500_small_cases_are_planned_within_a_thousandth_of_the_optimum() -> None:
    ratios = [_placed(case, "balanced").makespan_s / optimal_makespan(case) for case in map(small_case, range(500))]
    assert max(ratios) <= 1.0011
    assert min(ratios) >= 1 - 1e-9  # else the brute force is none


@pytest.mark.parametrize("choice", CHOICES)
def test_a_device_runs_one_job_at_a_time_and_every_job_runs_once_as_it_may(choice: Placement) -> None:
    for case in map(small_case, range(100)):
        schedule = _placed(case, choice)
        works = {work.name: work for work in case.works}
        assert sorted(slot.name for slot in schedule.slots) == sorted(works)
        for slot in schedule.slots:
            width, work = len(set(slot.devices)), works[slot.name]
            assert width in work.widths
            assert width == 1 or choice == "balanced"
            assert slot.end_s - slot.start_s == pytest.approx(work.seconds / speed_up(width, case.efficiency))
        for device in range(case.devices):
            own = [slot for slot in schedule.slots if device in slot.devices]
            assert all(a.end_s <= b.start_s for a, b in pairwise(own))
        assert {device for slot in schedule.slots for device in slot.devices} == set(range(schedule.devices))
        assert schedule.devices <= case.devices


def test_jobs_started_in_turn_as_devices_fall_free_run_as_planned() -> None:
    for case in map(small_case, range(100)):
        schedule = _placed(case, "balanced")
        seconds = {work.name: work.seconds for work in case.works}
        running: list[tuple[float, int]] = []
        now = 0.0
        for name, width in schedule.widths.items():
            while case.devices - sum(held for _, held in running) < width:
                now = min(running)[0]
                running.remove(min(running))
            running.append((now + seconds[name] / speed_up(width, case.efficiency), width))
        assert max(end for end, _ in running) == pytest.approx(schedule.makespan_s)


def test_packed_takes_the_fewest_devices_that_end_as_early() -> None:
    for case in map(small_case, range(200)):
        one_each, packed = _placed(case, "one-per-region"), _placed(case, "packed")
        assert packed.makespan_s <= one_each.makespan_s * 1.01
        narrow = tuple(Work(work.name, work.seconds) for work in case.works)
        fewer = Case(narrow, packed.devices - 1, 1.0)
        assert packed.devices == 1 or optimal_makespan(fewer) > one_each.makespan_s * 1.01


def test_with_fewer_devices_than_regions_the_longest_start_first() -> None:
    works = [Work(name, seconds) for name, seconds in {"a": 1.0, "b": 5.0, "c": 3.0, "d": 3.0}.items()]
    schedule = place(works, 2, "one-per-region", 0.9)
    assert [slot.name for slot in schedule.slots] == ["b", "c", "d", "a"]
    assert schedule.makespan_s == 6.0
    assert place(works, 9, "one-per-region", 0.9).devices == 4


def test_a_thousand_regions_on_a_hundred_gpus_are_planned_at_once_and_well() -> None:
    case = large_case(1000, 100)
    began = time.perf_counter()
    schedule = _placed(case, "balanced")
    assert time.perf_counter() - began < 10  # under a second when nothing else runs
    assert schedule.makespan_s <= 1.01 * _bound(case)


@pytest.mark.parametrize(("jobs", "devices"), [(13, 4), (16, 32), (30, 10), (50, 100)])
def test_too_many_jobs_for_an_exact_search_are_planned_near_the_bound(jobs: int, devices: int) -> None:
    case = large_case(jobs, devices)
    balanced, one_each = _placed(case, "balanced"), _placed(case, "one-per-region")
    assert balanced.makespan_s <= 1.2 * _bound(case)
    assert balanced.makespan_s <= one_each.makespan_s


def _bound(case: Case) -> float:
    return lower_bound(options_of(case), case.devices)


@pytest.mark.parametrize("choice", CHOICES)
def test_the_order_in_which_jobs_are_given_does_not_matter(choice: Placement) -> None:
    works = [Work(f"region {index}", 1.0 + index % 3, (1, 2, 4)) for index in range(9)]
    shuffled = random.Random(0).sample(works, len(works))
    assert place(shuffled, 4, choice, 0.9) == place(works, 4, choice, 0.9)


def test_a_job_gets_no_device_that_does_not_end_the_run_sooner() -> None:
    long, short = Work("long", 10.0, (1, 2)), Work("short", 1.0, (1, 2))
    assert place([long, short], 4, "balanced", 0.9).widths == {"long": 2, "short": 1}
    assert place([long, short], 4, "balanced", 0.5).widths == {"long": 1, "short": 1}  # half of double is nothing


def test_a_shared_draw_runs_before_all_others() -> None:
    draw = Work("shared draw", 4.0, (1, 2, 4))
    for choice, width in {"one-per-region": 1, "packed": 1, "balanced": 2}.items():
        schedule = place(PAPER, 3, choice, 0.9, draw)  # type: ignore[arg-type]
        first, *others = schedule.slots
        assert (first.name, first.start_s, len(first.devices)) == ("shared draw", 0.0, width)
        assert min(slot.start_s for slot in others) == first.end_s == 4.0 / speed_up(width, 0.9)
        alone = place(PAPER, 3, choice, 0.9)  # type: ignore[arg-type]
        assert schedule.makespan_s == pytest.approx(first.end_s + alone.makespan_s)


def test_a_doubling_keeps_the_efficiency() -> None:
    assert speed_up(1, 0.9) == 1
    assert speed_up(2, 0.9) == pytest.approx(1.8)
    assert speed_up(8, 0.9) == pytest.approx(8 * 0.9**3)


def test_only_devices_that_share_a_batch_evenly_work_on_one(tiny_plan: MakePlan) -> None:
    training = tiny_plan("training.batch_size=12", "training.gradient_accumulation=2").training
    assert allowed_widths(training, 4) == (1, 2, 3)
    assert allowed_widths(training, 100) == (1, 2, 3, 6)


def test_a_job_that_does_not_fit_on_a_device_is_named() -> None:
    work = Work("region 0-260", 1.0, memory_bytes=3 * 2**30)
    assert place([work], 1, "balanced", 0.9, device_memory_bytes=4 * 2**30).devices == 1
    with pytest.raises(UserError, match=r"region 0-260 = 3.00 GiB.*2.00 GiB"):
        place([work], 1, "balanced", 0.9, device_memory_bytes=2 * 2**30)


def test_jobs_cost_their_training_and_their_draw_in_dense_steps(tiny_plan: MakePlan) -> None:
    times = {0.0: 10.0, 0.3: 5.0, 0.6: 2.0, 0.8: 1.0}
    plan = tiny_plan("training.steps=100")
    works, first = works_of(plan, times, {f"draw/{region.name}": 7 for region in plan.regions})
    assert {work.name: work.seconds for work in works} == {
        "region 0-260": 570.0,
        "region 240-460": 270.0,
        "region 440-1000": 170.0,
    }
    assert first is None
    shared = tiny_plan("training.steps=100", "draw.scope=shared")
    works, first = works_of(shared, times, {"draw/shared": 7})
    assert [work.seconds for work in works] == [500.0, 200.0, 100.0]
    assert first is not None
    assert (first.name, first.seconds) == ("shared draw", 70.0)
    assert works_of(shared, times)[1] is None
