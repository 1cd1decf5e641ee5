"""Randomness as a function: everything random in step k comes from (seed, stage, timesteps, k), never from a state."""

from __future__ import annotations

import torch

from schemas.digest import seed_from


class StepRandomness:
    """The random numbers of one stage (DESIGN, invariant 3).

    Timesteps, noise and dropout (see `BatchDropout`) are drawn for the whole batch, so that each worker takes its
    share of the same numbers however many workers there are.
    """

    def __init__(self, seed: int, stage: str, timesteps: tuple[int, int], device: torch.device) -> None:
        self._parts: tuple[str | int, ...] = (seed, stage, *timesteps)
        self._generator = torch.Generator(device)

    def seed_for(self, purpose: str) -> int:
        """The seed of something of this stage that is not of one step (the order of the data, say)."""
        return seed_from(*self._parts, purpose)

    def generator(self, step: int, purpose: str = "noise") -> torch.Generator:
        """The stage's generator, set for this step; valid until the next call."""
        return self._generator.manual_seed(seed_from(*self._parts, purpose, index=step))

    def seed_network(self, step: int, purpose: str = "network") -> None:
        """Seed the generators that the network itself draws from (dropout), alike for every part of the batch."""
        torch.manual_seed(seed_from(*self._parts, purpose, index=step))
