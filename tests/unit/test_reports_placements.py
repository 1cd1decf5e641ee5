"""`ebdiff plan --gpus N`: timelines within 80 columns, a table over the number of GPUs, the costs behind them."""

import json

import pytest
from conftest import MakePlan
from typer.testing import CliRunner

from ebdiff_orchestrator.cli.app import app
from ebdiff_orchestrator.placement.schedule import Schedule, Slot, Work, place
from ebdiff_orchestrator.reports.placements import StepCosts, compare_placements, timeline
from schemas.errors import UserError

TIMES = {0.0: 10.0, 0.3: 6.0, 0.6: 3.0, 0.8: 1.0}
SMALL = ("--set", "model.block_out_channels=[16, 32]", "--set", "training.batch_size=8")


def _plan(*options: str) -> str:
    result = CliRunner().invoke(app, ["plan", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_cifar10_on_three_gpus_is_shown_as_the_paper_runs_it_and_balanced() -> None:
    lines = _plan("cifar10", "--gpus", "3", "--efficiency", "1").splitlines()
    heads = [line for line in lines if " busy, " in line]
    assert heads[0].startswith("one-per-region*: 3 GPUs, 111,867 dense steps, 52% busy")
    assert heads[1].startswith("packed: 2 GPUs, 111,867 dense steps")
    assert heads[2].startswith("balanced: 3 GPUs, 61,516 dense steps, 94% busy")
    assert sum(line.startswith("GPU ") and "|0-260 x2=" in line for line in lines) == 2
    assert max(map(len, lines)) <= 80
    counts = [line.split()[0] for line in lines if line[:1].isdigit() and "%" in line and "." not in line.split()[0]]
    assert counts[-6:] == ["1", "2", "3", "4", "5", "6"]


def test_a_timeline_has_a_line_a_device_on_one_scale() -> None:
    slots = (Slot("region a", (0, 1), 0.0, 5.0), Slot("region a-long-name", (1,), 5.0, 6.0))
    first, second = timeline(Schedule(slots, 2), 10.0, width=26)
    assert first == "GPU 0 |a x2=====.........."
    assert second == "GPU 1 |a x2=====|~........"
    assert len({len(line) for line in timeline(place([Work("w", 1.0)] * 11, 11, "packed", 0.9), 20.0)}) == 1


def test_measured_steps_come_in_seconds_and_count_the_draws(tiny_plan: MakePlan) -> None:
    plan = tiny_plan("training.steps=100", "draw.interval_steps=10", "placement=packed")
    found = compare_placements(plan, StepCosts(TIMES, "a device"), 3)
    assert found.here["one-per-region"].makespan_s == 7 * 10 * 10.0 + 600.0
    assert found.efficiency == 0.9
    assert list(found.by_devices) == [1, 2, 3, 4, 5, 6]
    assert any("interval 7, 10 steps" in line for line in found.assumptions)
    unknown = compare_placements(tiny_plan("draw.interval_steps=null", "data.path=x/y"), StepCosts(TIMES, "cpu"), 3)
    assert any("left out" in line for line in unknown.assumptions)


def test_sizes_alone_leave_the_draws_out(tiny_plan: MakePlan) -> None:
    plan = tiny_plan("draw.scope=shared", "training.steps=100")
    found = compare_placements(plan, StepCosts(TIMES), 2, efficiency=0.8)
    assert sorted(slot.name for slot in found.here["packed"].slots)[0] == "region 0-260"
    assert found.as_json()["unit"] == "dense steps"
    assert found.as_json()["efficiency"] == 0.8


def test_networks_too_large_for_the_gpus_planned_for_are_refused(tiny_plan: MakePlan) -> None:
    costs = StepCosts(TIMES, "a device", memory_bytes=8 * 2**30)
    with pytest.raises(UserError, match="gradient_accumulation"):
        compare_placements(tiny_plan(), costs, 2, device_memory_bytes=4 * 2**30)


def test_json_holds_the_schedules_of_steps_timed_here() -> None:
    found = json.loads(_plan("digits", "--gpus", "2", "--measure", "--json", *SMALL))["placements"]
    assert found["unit"] == "seconds"
    assert found["measured_on"] is not None
    assert [row["gpus"] for row in found["by_gpus"]] == [1, 2, 3, 4, 5, 6]
    slots = found["choices"]["balanced"]["slots"]
    assert {slot["name"] for slot in slots} == {"region 0-260", "region 240-460", "region 440-1000"}
    assert all(slot["end"] > slot["start"] for slot in slots)


@pytest.mark.parametrize("change", ["workers.gpus=2", "workers.gpus=0.5", "workers.processes=2"])
def test_placements_are_compared_for_regions_of_one_device_each(change: str, tiny_plan: MakePlan) -> None:
    with pytest.raises(UserError, match=rf"--gpus = 3: .* not .*{change.split('=')[0]} = {change.split('=')[1]}"):
        compare_placements(tiny_plan(change), StepCosts(TIMES), 3)
