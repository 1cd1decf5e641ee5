"""A search for a short schedule of jobs that may run on several devices each; good at any size."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

_BISECTIONS = 40
_DESCENTS = 16
_PLACED_AT_MOST = 5_000  # jobs placed in one descent, over all the schedules that it tries: bounds the time
ROUNDING = 1 + 1e-9


class Piece(NamedTuple):
    """A job as it will run: on `width` devices at once, for `seconds`."""

    name: str
    width: int
    seconds: float

    @property
    def device_s(self) -> float:
        """The device-seconds that it holds."""
        return self.width * self.seconds


Options = tuple[Piece, ...]  # of one job: from one device to ever more, each shorter and holding no less
Order = tuple[Piece, ...]  # a schedule: pieces in the order of their starts, each on the devices that are free first
_Score = Callable[[Order], tuple[float, ...]]


def finish_times(order: Sequence[Piece], devices: int) -> list[float]:
    """When each device ends its last piece, ascending."""
    free = [0.0] * devices
    for _, width, seconds in order:
        end = free[width - 1] + seconds
        del free[:width]
        at = bisect_left(free, end)
        free[at:at] = [end] * width
    return free


def lower_bound(jobs: Sequence[Options], devices: int) -> float:
    """A time before which no schedule ends.

    To end in a given time a job needs at least its narrowest width that is fast enough, and a wider one holds no fewer
    device-seconds; what all of them hold must fit on the devices.
    """
    low = max(options[-1].seconds for options in jobs)
    high = sum(options[0].seconds for options in jobs)
    if _fits(jobs, devices, low):
        return low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if _fits(jobs, devices, middle) else (middle, high)
    return low


def short_order(jobs: Sequence[Options], devices: int) -> Order:
    """A schedule that no change of one job's width or place makes shorter, as far as a fixed amount of work goes.

    Each job takes the narrowest width that meets a target time; of many targets, the best schedules are improved one
    change at a time. There is no randomness and no clock. Never longer than the jobs on one device each, longest first.
    """
    bound = lower_bound(jobs, devices)

    def latest_first(order: Order) -> tuple[float, ...]:
        return tuple(reversed(finish_times(order, devices)))

    starts = sorted(_first_orders(jobs, bound), key=latest_first)[:_DESCENTS]
    if finish_times(starts[0], devices)[-1] <= bound * ROUNDING:
        return starts[0]
    return min((_descend(order, jobs, latest_first) for order in starts), key=latest_first)


def without_waste(order: Order, jobs: Sequence[Options], devices: int) -> Order:
    """A schedule as short that holds fewer device-seconds, where one is found: no job is wider than it helps."""

    def makespan_then_held(order: Order) -> tuple[float, ...]:
        return finish_times(order, devices)[-1], sum(piece.device_s for piece in order)

    return _descend(order, jobs, makespan_then_held)


def longest_first(pieces: Sequence[Piece]) -> Order:
    """The pieces by their seconds, then by name."""
    return tuple(sorted(pieces, key=lambda piece: (-piece.seconds, piece.name)))


def _widest_first(pieces: Sequence[Piece]) -> Order:
    return tuple(sorted(pieces, key=lambda piece: (-piece.width, -piece.seconds, piece.name)))


def _fits(jobs: Sequence[Options], devices: int, target_s: float) -> bool:
    return sum(piece.device_s for piece in _allotment(jobs, target_s)) <= devices * target_s


def _allotment(jobs: Sequence[Options], target_s: float) -> list[Piece]:
    """Each job at the narrowest width that ends within the target, else at its widest."""
    return [next((piece for piece in options if piece.seconds <= target_s), options[-1]) for options in jobs]


def _first_orders(jobs: Sequence[Options], bound: float) -> list[Order]:
    """Schedules to start from. Targets below the bound give wide jobs one after another; infinity: all of width 1."""
    octaves = [*(-step / 8 for step in range(1, 17)), *(step / 32 for step in range(33))]
    orders: dict[Order, None] = {}
    for target_s in (*(bound * 2**octave for octave in octaves), float("inf")):
        pieces = _allotment(jobs, target_s)
        orders |= {longest_first(pieces): None, _widest_first(pieces): None}
    return list(orders)


def _descend(order: Order, jobs: Sequence[Options], score: _Score) -> Order:
    """Take the first change that lowers the score, again and again, until none does or the work is spent."""
    by_name = {options[0].name: options for options in jobs}
    best, placed = score(order), 0
    changes = _changes(order, by_name)
    while placed < _PLACED_AT_MOST:
        changed = next(changes, None)
        if changed is None:
            return order
        placed += len(order)
        found = score(changed)
        if found < best:
            order, best, changes = changed, found, _changes(changed, by_name)
    return order


def _changes(order: Order, jobs: dict[str, Options]) -> Iterator[Order]:
    """The schedules with one job at another width, all sorted anew; then with one at another place, at any width.

    The jobs that start last come first.
    """
    for index in reversed(range(len(order))):
        others = order[:index] + order[index + 1 :]
        for piece in jobs[order[index].name]:
            yield longest_first((*others, piece))
            yield _widest_first((*others, piece))
    for index in reversed(range(len(order))):
        others = order[:index] + order[index + 1 :]
        for piece in jobs[order[index].name]:
            for place in range(len(order)):
                yield (*others[:place], piece, *others[place:])
