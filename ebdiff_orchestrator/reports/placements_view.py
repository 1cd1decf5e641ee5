"""How `ebdiff plan` shows a plan and, with --gpus, its placements: timelines, and a table over the number of GPUs."""

from __future__ import annotations

from rich.console import Console

from ebdiff_orchestrator.placement.schedule import Schedule, Slot
from ebdiff_orchestrator.plans.preview import Outlook
from ebdiff_orchestrator.reports.estimate_view import duration
from ebdiff_orchestrator.reports.formats import TextTable, print_table
from ebdiff_orchestrator.reports.outlook_view import outlook_table
from ebdiff_orchestrator.reports.placements import Placements
from schemas.plan import Placement

_WIDTH = 80
_IDLE, _BUSY = ".", "="


def show_plan(outlook: Outlook, placements: Placements | None, console: Console) -> None:
    """Print the plan's networks, and its placements if there are any."""
    console.print(outlook_table(outlook))
    if placements is not None:
        console.print()
        show_placements(placements, console)


def show_placements(found: Placements, console: Console) -> None:
    """Print the timelines on one time scale, the table, and what is assumed."""
    longest_s = max(schedule.makespan_s for schedule in found.here.values())
    for choice, schedule in found.here.items():
        lines = [f"{_marked(choice, found)}: {_sums(schedule, found)}", *timeline(schedule, longest_s), ""]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    print_table(_by_devices(found), console)


def timeline(schedule: Schedule, until_s: float, width: int = _WIDTH) -> list[str]:
    """A line a device, with the names of the regions in it and how many devices they hold if more than one.

    A whole line spans the time from 0 to `until_s`.
    """
    heads = [f"GPU {device} " for device in range(schedule.devices)]
    room = width - len(heads[-1])
    lines = []
    for device, head in enumerate(heads):
        bar = [_IDLE] * room
        for slot in schedule.slots:
            if device in slot.devices:
                start, end = (round(room * at_s / until_s) for at_s in (slot.start_s, slot.end_s))
                bar[start:end] = _block(slot, end - start)
        lines.append(head.ljust(len(heads[-1])) + "".join(bar))
    return lines


def _block(slot: Slot, width: int) -> str:
    """As in `|0-260 x2=====`, or `|0-2~` where that does not fit."""
    several = f" x{len(slot.devices)}" if len(slot.devices) > 1 else ""
    text = f"|{slot.name.removeprefix('region ')}{several}"
    return (text if len(text) <= width else f"{text[: width - 1]}~")[:width].ljust(width, _BUSY)


def _by_devices(found: Placements) -> TextTable:
    rows = []
    for devices, placed in found.by_devices.items():
        cells = (f"{_time(s.makespan_s, found)} {s.busy:.0%} {_rent(s, found)}" for s in placed.values())
        rows.append((str(devices), *cells))
    unit, basis = " in dense steps", "Steps cost as their MACs say (--measure: as they take here)."
    if found.measured_on is not None:
        unit, basis = "", f"Step times of {found.measured_on}."
    footnotes = (
        "* The plan's placement.",
        f"Each: makespan{unit}, busy share and {_rent_unit(found)} of the GPUs in use, from start to end.",
        basis,
        *(f"Assumed: {line}" for line in found.assumptions),
    )
    return TextTable(("GPUs", *(_marked(choice, found) for choice in found.here)), tuple(rows), footnotes)


def _marked(choice: Placement, found: Placements) -> str:
    return f"{choice}*" if choice == found.plan.placement else choice


def _sums(schedule: Schedule, found: Placements) -> str:
    gpus = f"{schedule.devices} GPU{'' if schedule.devices == 1 else 's'}"
    unit = "" if found.measured_on else " dense steps"
    rent = f"{_rent(schedule, found)} {_rent_unit(found)}"
    return f"{gpus}, {_time(schedule.makespan_s, found)}{unit}, {schedule.busy:.0%} busy, {rent}"


def _time(seconds: float, found: Placements) -> str:
    return duration(seconds) if found.measured_on else f"{seconds:,.0f}"


def _rent(schedule: Schedule, found: Placements) -> str:
    return f"{schedule.rented_s / 3600:,.3g}" if found.measured_on else f"{schedule.rented_s:,.0f}"


def _rent_unit(found: Placements) -> str:
    return "GPU-hours" if found.measured_on else "GPU-steps"
