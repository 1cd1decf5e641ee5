"""The random numbers of a step: a function of (seed, stage, timesteps, step), never of a generator's state.

They are drawn for the whole batch, so that they are the same however workers and micro-batches share it (DESIGN,
invariant 3).
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from schemas.digest import seed_from


class StepRandomness:
    """The generators of one stage, seeded anew for each step."""

    def __init__(self, seed: int, stage: str, timesteps: tuple[int, int], device: torch.device) -> None:
        self._parts: tuple[str | int, ...] = (seed, stage, *timesteps)
        self._generator = torch.Generator(device)

    def seed_for(self, purpose: str) -> int:
        """The seed of what belongs to the whole stage and not to one step, such as the order of the data."""
        return seed_from(*self._parts, purpose)

    def generator(self, step: int, purpose: str = "noise") -> torch.Generator:
        """The stage's generator, set for this step; valid until the next call."""
        return self._generator.manual_seed(seed_from(*self._parts, purpose, index=step))

    def seed_network(self, step: int, purpose: str = "network") -> None:
        """Seed the generators that the network itself draws from (dropout), alike for every part of the batch."""
        torch.manual_seed(seed_from(*self._parts, purpose, index=step))


class BatchDropout(nn.Dropout):
    """Dropout whose mask is that of the whole batch, of which the input [B, ...] is `rows`.

    `rows` is a tensor so that torch.compile serves all parts of a batch by one graph.
    """

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.rows, self.batch_size = torch.arange(0), 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Dropout's name for it
        """As nn.Dropout; the same numbers for the rows, whoever computes them."""
        if not self.training:
            return input
        is_whole = input.shape[0] == self.batch_size
        by_bits = input.device.type == "cpu" and not torch.compiler.is_compiling()
        if is_whole and not by_bits:
            return F.dropout(input, self.p)
        mask = input.new_ones((self.batch_size, *input.shape[1:]))
        if input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last):
            mask = mask.contiguous(memory_format=torch.channels_last)
        mask = _drop_by_bits(mask, self.p) if by_bits else F.dropout(mask, self.p)
        return input * (mask if is_whole else mask[self.rows])


def use_batch_dropout(network: nn.Module) -> list[BatchDropout]:
    """Replace each nn.Dropout that drops anything by a BatchDropout; returns those now in the network."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout and child.p > 0:
                setattr(parent, name, BatchDropout(child.p).train(child.training))
    return [module for module in network.modules() if isinstance(module, BatchDropout)]


def set_dropout_rows(dropouts: Sequence[BatchDropout], rows: slice, batch_size: int, device: torch.device) -> None:
    """Tell which rows of the whole batch come next. The generator must be seeded alike for all parts of a batch."""
    numbers = torch.arange(rows.start, rows.stop, device=device)
    for dropout in dropouts:
        dropout.rows, dropout.batch_size = numbers, batch_size


def _drop_by_bits(ones: torch.Tensor, p: float) -> torch.Tensor:
    """F.dropout of ones on a CPU, in a third of its time: 16 random bits a number, so p is to the nearest 1 / 65536."""
    dropped = min(round(p * 65536), 65535)
    draws = torch.empty(ones.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: ones.numel()] >= dropped - 32768
    return ones.mul_(kept.as_strided(ones.shape, ones.stride())).mul_(65536 / (65536 - dropped))
