"""The shortest schedule of a few jobs, by branch and bound over their order and widths."""

from __future__ import annotations

from collections.abc import Sequence

from ebdiff_orchestrator.placement.search import Options, Order, Piece, finish_times

_MOST_JOBS = 12
_MOST_VISITS = 20_000
_GAP = 1e-3


def shortened(order: Order, jobs: Sequence[Options], devices: int) -> Order:
    """The order, or the shortest that is found from it.

    Within 0.1% of the optimum if the search comes to its end, as it does for up to about six jobs; with more it stops
    after a fixed amount of work, and with more than twelve it is not tried. Every optimum is among the schedules that
    are searched: started in the order of its starts, each job on the devices free first, no job starts later.
    """
    if len(jobs) > _MOST_JOBS:
        return order
    search = _BranchAndBound(order, jobs, devices)
    search.run()
    return search.order


class _BranchAndBound:
    """Depth first: the next job to start, at each of its widths."""

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
        """What a job holds at least in a schedule no longer than the one at hand."""
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
        """A schedule that is not shorter than this is not looked for."""
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
