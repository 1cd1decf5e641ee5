"""Dropout of a batch that several workers, or several passes, share: together they drop what one alone would."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


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


def _drop_by_bits(ones: torch.Tensor, p: float) -> torch.Tensor:
    """F.dropout of ones on a CPU, in a third of its time: 16 random bits a number, so p is to the nearest 1 / 65536."""
    dropped = round(p * 65536)
    draws = torch.empty(ones.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: ones.numel()] >= dropped - 32768
    return ones.mul_(kept.as_strided(ones.shape, ones.stride())).mul_(65536 / (65536 - dropped))


def share_dropout(network: nn.Module) -> list[BatchDropout]:
    """Put a BatchDropout in the place of each Dropout that drops anything; those now in the network."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout and child.p > 0:
                setattr(parent, name, BatchDropout(child.p).train(child.training))
    return [module for module in network.modules() if isinstance(module, BatchDropout)]


def take_rows(dropouts: Sequence[BatchDropout], rows: slice, batch_size: int, device: torch.device) -> None:
    """Tell which rows of the whole batch come next. The generator must be seeded alike for all parts of a batch."""
    numbers = torch.arange(rows.start, rows.stop, device=device)
    for dropout in dropouts:
        dropout.rows, dropout.batch_size = numbers, batch_size
