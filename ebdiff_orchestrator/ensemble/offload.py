"""Experts whose weights stay in their files until their first step; one at a time has them on the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ebdiff_orchestrator.ensemble.network_files import empty, fill_network


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
