"""Which expert owns a timestep; batches whose rows go to several experts; experts read when their turn comes."""

import bisect
import numbers
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ebdiff_orchestrator.ensemble.network_files import empty, fill_network
from schemas.errors import user_error

Route = tuple[int, int]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
Timestep = int | float | torch.Tensor


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

    def owner(self, timestep: int | float) -> int:
        """The index of the expert that owns `timestep`; a fraction goes to its floor's owner. Raises `UserError`."""
        stop = self.routes[-1][1]
        if not 0 <= timestep < stop:  # False for NaN as well
            raise user_error(
                "timestep",
                timestep,
                f"0 <= timestep < {stop}, the range that the experts {', '.join(self.names)} cover",
                "Use a scheduler with num_train_timesteps equal to that range's end.",
            )
        return bisect.bisect_right(self._starts, timestep) - 1


def _route(route: Sequence[int]) -> Route:
    if len(route) != 2 or not all(isinstance(bound, int) for bound in route):
        raise user_error("routes", list(route), "two whole numbers, start and stop", "Give [start, stop).")
    return route[0], route[1]


def _check_partition(routes: tuple[Route, ...]) -> None:
    if not routes:
        raise user_error("routes", [], "at least one route", "Give one [start, stop) for each expert.")
    expected = 0
    for index, (start, stop) in enumerate(routes):
        if start != expected or stop <= start:
            raise user_error(
                f"routes.{index}",
                [start, stop],
                f"a start of {expected} and a stop above it",
                "Routes are sorted, start at timestep 0 and follow each other without hole or overlap.",
            )
        expected = stop


def _check_names(names: tuple[str, ...], count: int) -> None:
    if len(names) != count or len(set(names)) != count:
        raise user_error("names", list(names), f"{count} different names, one a route", "Name each expert.")
    for name in names:
        if not _NAME.fullmatch(name):
            raise user_error(
                "names", name, "letters, digits, '.', '_' and '-'", "Names become folders; rename the region."
            )


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a CPU tensor on `device`. On CUDA it goes through pinned memory, so the host does not wait."""
    if device.type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)


def take_rows(value: Any, rows: torch.Tensor, batch: int) -> Any:
    """The given rows of every batched tensor in `value`; anything else unchanged.

    A tensor is batched if its first dimension is `batch`; dicts, lists and tuples are searched.
    `rows` is an int64 index tensor on the tensors' device; the lengths of drawings stay on the CPU.
    """
    if isinstance(value, torch.Tensor):
        return value.index_select(0, rows.to(value.device)) if value.ndim > 0 and value.shape[0] == batch else value
    if isinstance(value, dict):
        return {key: take_rows(item, rows, batch) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(take_rows(item, rows, batch) for item in value)
    return value


def host_values(timestep: Timestep) -> list[int | float]:
    """The timesteps as plain numbers; waits for the device if they are a tensor there."""
    if isinstance(timestep, torch.Tensor):
        return cast(list[int | float], timestep.detach().reshape(-1).tolist())
    return [int(timestep) if isinstance(timestep, numbers.Integral) else float(timestep)]


def timesteps_of_batch(timestep: Timestep, values: list[int | float], batch: int, device: torch.device) -> torch.Tensor:
    """The timesteps [B] on `device`. Built there when they are one number: a copy would wait for the device."""
    if isinstance(timestep, torch.Tensor) and timestep.device == device:
        return timestep.reshape(-1).expand(batch)
    dtype = torch.int64 if all(isinstance(value, int) for value in values) else torch.float32
    if len(set(values)) == 1:
        return torch.full((batch,), values[0], dtype=dtype, device=device)
    return to_device(torch.tensor(values, dtype=dtype), device)


class OffloadedExperts:
    """Reads an expert's weights when its turn comes, and lets those of the one before go.

    Timesteps descend, so a trajectory reads every expert once. The files must stay where they are.
    """

    def __init__(self, experts: Sequence[nn.Module], folders: Sequence[Path], device: torch.device) -> None:
        """`experts[i]` is an `empty_network` of `folders[i]`; `device` is where they work."""
        self.device = device
        self._experts, self._folders = experts, folders
        self._loaded: int | None = None

    def load(self, index: int) -> None:
        """Have this expert's weights, and no other's, on the device. Raises `UserError` if they do not fit it."""
        if self._loaded == index:
            return
        if self._loaded is not None:
            empty(self._experts[self._loaded])
            self._loaded = None
        fill_network(self._experts[index], self._folders[index], self.device)
        self._loaded = index
