"""Routes: which expert owns a timestep at sampling."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence

from schemas.errors import UserError, problem

Route = tuple[int, int]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class Routes:
    """A partition of the timesteps [0, T) into half-open ranges, one an expert, in order.

    A timestep belongs to the expert with the largest start that is not above it. Raises `UserError` (a ValueError)
    unless the ranges start at 0, follow each other without hole or overlap, and carry different file-safe names.
    """

    def __init__(self, routes: Sequence[Sequence[int]], names: Sequence[str]) -> None:
        self.routes = tuple(_route(route) for route in routes)
        self.names = tuple(names)
        _check_partition(self.routes)
        _check_names(self.names, len(self.routes))
        self._starts = [start for start, _ in self.routes]

    @property
    def stop(self) -> int:
        """T: the first timestep that no expert owns."""
        return self.routes[-1][1]

    def owner(self, timestep: int | float) -> int:
        """The index of the expert that owns `timestep`; a fraction goes to its floor's owner. Raises `UserError`."""
        if not 0 <= timestep < self.stop:  # False for NaN as well
            raise UserError(
                problem(
                    "timestep",
                    timestep,
                    f"0 <= timestep < {self.stop}, the range that the experts {', '.join(self.names)} cover",
                    "Use a scheduler with num_train_timesteps equal to that range's end.",
                )
            )
        return bisect.bisect_right(self._starts, timestep) - 1


def _route(route: Sequence[int]) -> Route:
    if len(route) != 2 or not all(isinstance(bound, int) for bound in route):
        raise UserError(problem("routes", list(route), "two whole numbers, start and stop", "Give [start, stop)."))
    return route[0], route[1]


def _check_partition(routes: tuple[Route, ...]) -> None:
    if not routes:
        raise UserError(problem("routes", [], "at least one route", "Give one [start, stop) for each expert."))
    expected = 0
    for index, (start, stop) in enumerate(routes):
        if start != expected or stop <= start:
            raise UserError(
                problem(
                    f"routes.{index}",
                    [start, stop],
                    f"a start of {expected} and a stop above it",
                    "Routes are sorted, start at timestep 0 and follow each other without hole or overlap.",
                )
            )
        expected = stop


def _check_names(names: tuple[str, ...], count: int) -> None:
    if len(names) != count or len(set(names)) != count:
        raise UserError(problem("names", list(names), f"{count} different names, one a route", "Name each expert."))
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(
                problem("names", name, "letters, digits, '.', '_' and '-'", "Names become folders; rename the region.")
            )
