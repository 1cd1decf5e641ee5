"""`ebdiff plan --gpus N`: what each placement of a plan's regions comes to, on N devices and on fewer and more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ebdiff_orchestrator.placement.schedule import CHOICES, Schedule, place
from ebdiff_orchestrator.placement.works import (
    DRAW_INTERVALS,
    dense_steps_by_macs,
    draw_steps_of,
    drawn_after,
    interval_steps,
    works_of,
)
from ebdiff_orchestrator.plans.preview import Outlook
from ebdiff_orchestrator.reports.estimate import Say, measure_steps
from schemas.errors import UserError, problem
from schemas.plan import Placement, Plan

_STEPS = 5  # timed of each network
_MOST_COUNTS = 32
Placed = Mapping[Placement, Schedule]


@dataclass(frozen=True)
class StepCosts:
    """What one update costs by pruning ratio, 0 for the dense network.

    `device`: where the seconds were measured, with the largest network's memory if it is a GPU; None: nothing was, and
    the unit is an update of the dense network.
    """

    times: Mapping[float, float]
    device: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Placements:
    """Each choice on `devices`, and on 1 to twice as many as regions."""

    plan: Plan
    devices: int
    efficiency: float
    measured_on: str | None
    here: Placed
    by_devices: Mapping[int, Placed]
    assumptions: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers; times in seconds, or in updates of the dense network where nothing was measured."""
        return {
            "gpus": self.devices,
            "placement": self.plan.placement,
            "efficiency": self.efficiency,
            "measured_on": self.measured_on,
            "unit": "dense steps" if self.measured_on is None else "seconds",
            "choices": {choice: schedule.as_json() for choice, schedule in self.here.items()},
            "by_gpus": [
                {"gpus": devices, **{choice: schedule.as_json() for choice, schedule in placed.items()}}
                for devices, placed in self.by_devices.items()
            ],
            "assumptions": list(self.assumptions),
        }


def placements_of(
    outlook: Outlook,
    devices: int,
    measure: bool,
    efficiency: float | None,
    device_memory_gib: float | None,
    say: Say,
) -> Placements:
    """Every placement of the plan, by the networks' MACs or, if so wanted, by steps timed on the device at hand.

    Raises UserError for a network that does not fit: on that device, or in the memory given.
    """
    costs = _measured_costs(outlook.plan, say) if measure else StepCosts(dense_steps_by_macs(outlook))
    if device_memory_gib is not None and costs.memory_bytes is None:
        raise UserError(
            problem(
                "--gpu-memory",
                device_memory_gib,
                "--measure on a machine with a GPU, since nothing else tells what a network needs",
                "Leave it out.",
            )
        )
    memory = None if device_memory_gib is None else round(device_memory_gib * 2**30)
    return compare_placements(outlook.plan, costs, devices, efficiency, memory)


def compare_placements(
    plan: Plan, costs: StepCosts, devices: int, efficiency: float | None = None, device_memory_bytes: int | None = None
) -> Placements:
    """Every placement on `devices`, and on 1 to twice as many as regions (of many, evenly spread).

    `efficiency`: instead of the plan's. Draws are counted where steps were measured, as in `estimate`; by size alone
    they are left out. Raises UserError for a job that does not fit in `device_memory_bytes`, and for a plan whose
    regions start on several devices, or on a share of one.
    """
    if not plan.workers.one_device_each:
        given = plan.workers.asked_each
        expected = f"regions of one device each, not {given}: a placement decides how many a region gets"
        raise UserError(problem("--gpus", devices, expected, "Leave out --gpus, or those two fields."))
    efficiency = plan.workers.parallel_efficiency if efficiency is None else efficiency
    draw_steps, drawn = (None, "Draws are left out, as in the paper's accounting; --measure counts them.")
    if costs.device is not None:
        draw_steps, drawn = _draws(plan)
    works, first = works_of(plan, costs.times, draw_steps, costs.memory_bytes)

    def on(count: int) -> Placed:
        return {choice: place(works, count, choice, efficiency, first, device_memory_bytes) for choice in CHOICES}

    most = 2 * len(plan.regions)
    counts = range(1, most + 1, max(1, most // _MOST_COUNTS))
    kept = f"Each doubling of a region's GPUs keeps {efficiency:.0%} of the speed (--efficiency)."
    by_devices = {count: on(count) for count in counts}
    return Placements(plan, devices, efficiency, costs.device, on(devices), by_devices, (kept, drawn))


def _measured_costs(plan: Plan, say: Say) -> StepCosts:
    times, device = measure_steps(plan, _STEPS, say)
    peaks = [step.peak_memory_bytes for step in times.values() if step.peak_memory_bytes is not None]
    return StepCosts({ratio: step.seconds for ratio, step in times.items()}, device, max(peaks, default=None))


def _draws(plan: Plan) -> tuple[dict[str, int] | None, str]:
    """The steps of the draws, if they can be known, and what is assumed of them."""
    interval = interval_steps(plan)
    if interval is None:
        return None, f"Draws are left out: an epoch of {plan.data.path} is unknown; set draw.interval_steps."
    counted = f"Draws converge at interval {drawn_after(plan, DRAW_INTERVALS)}, {interval} steps each."
    return draw_steps_of(plan, interval, DRAW_INTERVALS), counted if interval else "Nothing is drawn by training."
