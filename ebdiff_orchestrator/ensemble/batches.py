"""Batches whose rows go to different experts: take rows out, put results back, without waiting for the device."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, cast

import torch

Timestep = int | float | torch.Tensor


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a CPU tensor on `device`. On CUDA it goes through pinned memory, so the host does not wait."""
    if device.type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)


def take_rows(value: Any, rows: torch.Tensor, batch: int) -> Any:
    """The given rows of every batched tensor in `value`; anything else unchanged.

    A tensor is batched if its first dimension is `batch`; dicts, lists and tuples are searched.
    `rows` is an int64 index tensor on the tensors' device.
    """
    if isinstance(value, torch.Tensor):
        return value.index_select(0, rows) if value.ndim > 0 and value.shape[0] == batch else value
    if isinstance(value, dict):
        return {key: take_rows(item, rows, batch) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(take_rows(item, rows, batch) for item in value)
    return value


def in_order(parts: Sequence[torch.Tensor], rows_of_parts: Sequence[Sequence[int]]) -> torch.Tensor:
    """One tensor whose row r is the row that came from r: undoes a split into `rows_of_parts`."""
    rows = torch.tensor([row for rows in rows_of_parts for row in rows])
    place = torch.argsort(rows)
    stacked = torch.cat(list(parts))
    return stacked.index_select(0, to_device(place, stacked.device))


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
