"""Which job runs when and on how many devices: a pure function of what the jobs cost, so that a makespan is planned.

A device runs one job at a time, a job keeps its devices from its start to its end, and jobs on one device follow one
another. So a device must hold the memory of one job at most.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ebdiff_orchestrator.placement.search import (
    Options,
    Order,
    Piece,
    finish_times,
    longest_first,
    short_order,
)
from schemas.errors import user_error
from schemas.plan import Placement, TrainingPlan

CHOICES: tuple[Placement, ...] = get_args(Placement)
_AS_LONG = 1.01  # packed: a makespan up to 1% longer counts as the same


@dataclass(frozen=True)
class Work:
    """A job before it is placed.

    `seconds` on one device, or any other unit of time: a schedule comes in the same. `widths`: the numbers of devices
    that it may run on, ascending from 1. `memory_bytes`: what it needs on one device; None: not known.
    """

    name: str
    seconds: float
    widths: tuple[int, ...] = (1,)
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Slot:
    """A job's place: the devices that it holds, counted from 0, and from when to when."""

    name: str
    devices: tuple[int, ...]
    start_s: float
    end_s: float

    @property
    def device_s(self) -> float:
        return len(self.devices) * (self.end_s - self.start_s)


@dataclass(frozen=True)
class Schedule:
    """The jobs in the order of their starts, on `devices` devices: those that hold any job, not those on offer."""

    slots: tuple[Slot, ...]
    devices: int

    @property
    def widths(self) -> dict[str, int]:
        """How many devices each job holds. Jobs run as here if they start in this order, each as soon as it can."""
        return {slot.name: len(slot.devices) for slot in self.slots}

    @property
    def makespan_s(self) -> float:
        """From the first start to the last end."""
        return max(slot.end_s for slot in self.slots)

    @property
    def held_s(self) -> float:
        """Device-seconds that jobs hold."""
        return sum(slot.device_s for slot in self.slots)

    @property
    def rented_s(self) -> float:
        """Device-seconds of all devices from start to end, as they are paid for."""
        return self.devices * self.makespan_s

    @property
    def busy(self) -> float:
        """The share of the rented device-seconds that jobs hold."""
        return self.held_s / self.rented_s

    def as_json(self) -> dict[str, Any]:
        slots = [
            {"name": slot.name, "devices": list(slot.devices), "start": slot.start_s, "end": slot.end_s}
            for slot in self.slots
        ]
        sums = {"makespan": self.makespan_s, "busy": self.busy, "rented": self.rented_s, "held": self.held_s}
        return {"devices": self.devices, **sums, "slots": slots}


def speed_up(devices: int, efficiency: float) -> float:
    """How many times faster than one device: each doubling keeps `efficiency` of what it could give."""
    return devices * math.pow(efficiency, math.log2(devices))


def allowed_widths(training: TrainingPlan, devices: int) -> tuple[int, ...]:
    """The numbers of devices, up to `devices`, that can share a batch: each gets as many images in every pass."""
    images = training.batch_size // training.gradient_accumulation
    return tuple(width for width in range(1, devices + 1) if images % width == 0)


def place(
    works: Sequence[Work],
    devices: int,
    choice: Placement,
    efficiency: float,
    first: Work | None = None,
    device_memory_bytes: int | None = None,
) -> Schedule:
    """A schedule of the works (at least one, of different names) on at most `devices` devices.

    one-per-region: each on one device, the longest first; packed: each on one device, on as few devices as end within
    1% of that; balanced: each on as many devices as end all of them soonest. `first` runs before all others, on one
    device, or if balanced on as many as help it. Raises UserError for a job that does not fit in `device_memory_bytes`.
    """
    if device_memory_bytes is not None:
        for work in (*works, *((first,) if first else ())):
            _check_memory(work, device_memory_bytes)
    widest = devices if choice == "balanced" else 1
    before = (_options(first, widest, efficiency)[-1],) if first else ()
    begin_s = sum((piece.seconds for piece in before), 0.0)
    jobs = [_options(work, widest, efficiency) for work in works]
    if choice == "balanced":
        order = short_order(jobs, devices)
    else:
        order = longest_first([options[0] for options in jobs])
        if choice == "packed":
            makespan_s = begin_s + finish_times(order, devices)[-1]
            order, devices = _packed(order, devices, _AS_LONG * makespan_s - begin_s)
    slots = (*_slots(before, widest, 0.0), *_slots(order, devices, begin_s))
    return Schedule(slots, len({device for slot in slots for device in slot.devices}))


def _check_memory(work: Work, device_memory_bytes: int) -> None:
    if work.memory_bytes is not None and work.memory_bytes > device_memory_bytes:
        expected = f"at most the {device_memory_bytes / 2**30:.2f} GiB of a device"
        remedy = "Raise training.gradient_accumulation, or use training.precision=bf16 or larger devices."
        raise user_error(f"memory of {work.name}", f"{work.memory_bytes / 2**30:.2f} GiB", expected, remedy)


def _options(work: Work, widest: int, efficiency: float) -> Options:
    """The widths that pay: each makes the job shorter than the one before."""
    options = [Piece(work.name, 1, work.seconds)]
    for width in work.widths:
        seconds = work.seconds / speed_up(width, efficiency)
        if width <= widest and seconds < options[-1].seconds:
            options.append(Piece(work.name, width, seconds))
    return tuple(options)


def _packed(order: Order, devices: int, limit_s: float) -> tuple[Order, int]:
    """The pieces, longest first, each behind others on the first device that still ends in time, and how many it took.

    If that takes more devices than there are, the order as it is.
    """
    ends: list[float] = []
    starts: list[tuple[float, int]] = []
    for index, piece in enumerate(order):
        device = next((device for device, end in enumerate(ends) if end + piece.seconds <= limit_s), len(ends))
        if device == len(ends):
            ends.append(0.0)
        starts.append((ends[device], index))
        ends[device] += piece.seconds
    if len(ends) > devices:
        return order, devices
    packed = tuple(order[index] for _, index in sorted(starts))
    return min((order, packed), key=lambda either: finish_times(either, len(ends))[-1]), len(ends)


def _slots(order: Order, devices: int, begin_s: float) -> list[Slot]:
    """Each piece, in turn, on the devices that are free first."""
    free = [(begin_s, device) for device in range(devices)]
    slots = []
    for piece in order:
        taken, free = free[: piece.width], free[piece.width :]
        start_s = taken[-1][0]
        end_s = start_s + piece.seconds
        held = tuple(sorted(device for _, device in taken))
        slots.append(Slot(piece.name, held, start_s, end_s))
        free = sorted([*free, *((end_s, device) for device in held)])
    return slots
