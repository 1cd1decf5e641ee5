"""A short schedule of jobs that may run on several devices each: for up to twelve jobs, near the optimum."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

_BISECTIONS = 40
_MOST_SEARCHED_JOBS = 12
_MOST_VISITS = 20_000
_GAP = 1e-3  # a schedule that is shorter by less is not looked for
_ROUNDING = 1 + 1e-9


class Piece(NamedTuple):
    """A job as it will run: on `width` devices at once, for `seconds`."""

    name: str
    width: int
    seconds: float

    @property
    def device_s(self) -> float:
        return self.width * self.seconds


Options = tuple[Piece, ...]  # of one job: from one device to ever more, each shorter and holding no less
Order = tuple[Piece, ...]  # a schedule: pieces in the order of their starts, each on the devices that are free first


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


def longest_first(pieces: Sequence[Piece]) -> Order:
    """The pieces by their seconds, then by name."""
    return tuple(sorted(pieces, key=lambda piece: (-piece.seconds, piece.name)))


def short_order(jobs: Sequence[Options], devices: int) -> Order:
    """The shortest schedule that is found, no job wider than helps. There is no randomness and no clock.

    Never longer than the jobs on one device each, longest first; with up to about six jobs within 0.1% of the optimum.
    """
    order = first_order(jobs, devices)
    if len(jobs) <= _MOST_SEARCHED_JOBS:
        search = _BranchAndBound(order, jobs, devices)
        search.run()
        order = search.order
    return _narrowed(order, jobs, devices)


def first_order(jobs: Sequence[Options], devices: int) -> Order:
    """Of many target times, the best schedule in which each job takes the narrowest width that meets the target.

    Targets below the bound give wide jobs one after another; infinity gives each job one device.
    """
    bound = lower_bound(jobs, devices)
    octaves = [*(-step / 8 for step in range(1, 17)), *(step / 32 for step in range(33))]
    orders: dict[Order, None] = {}
    for target_s in (*(bound * 2**octave for octave in octaves), float("inf")):
        pieces = _allotment(jobs, target_s)
        orders |= {longest_first(pieces): None, _widest_first(pieces): None}
    return min(orders, key=lambda order: finish_times(order, devices)[::-1])


def _narrowed(order: Order, jobs: Sequence[Options], devices: int) -> Order:
    """The order with each job, the last first, at its narrowest width that makes no run longer."""
    by_name = {options[0].name: options for options in jobs}
    limit_s = finish_times(order, devices)[-1] * _ROUNDING
    for index in reversed(range(len(order))):
        for piece in by_name[order[index].name]:
            narrower = (*order[:index], piece, *order[index + 1 :])
            if piece.width < order[index].width and finish_times(narrower, devices)[-1] <= limit_s:
                order = narrower
                break
    return order


def _widest_first(pieces: Sequence[Piece]) -> Order:
    return tuple(sorted(pieces, key=lambda piece: (-piece.width, -piece.seconds, piece.name)))


def _fits(jobs: Sequence[Options], devices: int, target_s: float) -> bool:
    return sum(piece.device_s for piece in _allotment(jobs, target_s)) <= devices * target_s


def _allotment(jobs: Sequence[Options], target_s: float) -> list[Piece]:
    """Each job at the narrowest width that ends within the target, else at its widest."""
    return [next((piece for piece in options if piece.seconds <= target_s), options[-1]) for options in jobs]


class _BranchAndBound:
    """Depth first: the next job to start, at each of its widths; ends after a fixed amount of work.

    Every optimum is among the schedules searched: started in the order of its starts, each job on the devices free
    first, no job starts later.
    """

    def __init__(self, order: Order, jobs: Sequence[Options], devices: int) -> None:
        self.order = order
        self._makespan_s = finish_times(order, devices)[-1]
        self._devices = devices
        self._jobs = sorted(jobs, key=lambda options: (-options[0].seconds, options[0].name))
        costs = [tuple((piece.width, piece.seconds) for piece in options) for options in self._jobs]
        self._kinds = [costs.index(cost) for cost in costs]  # jobs of equal costs are of one kind
        self._least_s = [self._least_device_s(options) for options in self._jobs]
        self._visited: set[tuple[tuple[int, ...], tuple[float, ...]]] = set()
        self._visits = 0

    def run(self) -> None:
        """Leave the best schedule in `order`."""
        self._visit((), tuple(range(len(self._jobs))), (0.0,) * self._devices)

    def _least_device_s(self, options: Options) -> float:
        """The least device-seconds of a job in any schedule that is no longer than the one at hand."""
        return next(piece.device_s for piece in options if piece.seconds <= self._makespan_s)

    def _visit(self, started: Order, left: tuple[int, ...], free: tuple[float, ...]) -> None:
        """`left`: the jobs not yet started; `free`: when each device ends its work, ascending."""
        self._visits += 1
        if not left:
            self.order, self._makespan_s = started, free[-1]
        elif self._visits <= _MOST_VISITS and not self._hopeless(left, free) and self._is_new(left, free):
            kinds = {self._kinds[index]: index for index in reversed(left)}
            for index in sorted(kinds.values()):
                others = tuple(other for other in left if other != index)
                for piece in self._jobs[index]:
                    self._start(started, piece, others, free)

    def _start(self, started: Order, piece: Piece, left: tuple[int, ...], free: tuple[float, ...]) -> None:
        end = free[piece.width - 1] + piece.seconds
        if end < self._worth_it_s:
            self._visit((*started, piece), left, tuple(sorted(free[piece.width :] + (end,) * piece.width)))

    @property
    def _worth_it_s(self) -> float:
        """Only schedules shorter than this are looked for."""
        return self._makespan_s * (1 - _GAP)

    def _hopeless(self, left: tuple[int, ...], free: tuple[float, ...]) -> bool:
        held_s = sum(free) + sum(self._least_s[index] for index in left)
        last_s = free[0] + max(self._jobs[index][-1].seconds for index in left)
        return max(held_s / self._devices, last_s) >= self._worth_it_s

    def _is_new(self, left: tuple[int, ...], free: tuple[float, ...]) -> bool:
        state = tuple(self._kinds[index] for index in left), free
        if state in self._visited:
            return False
        self._visited.add(state)
        return True
