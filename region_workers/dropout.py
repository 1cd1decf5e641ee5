"""Dropout of a batch that several workers, or several passes, share: together they drop what one alone would."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class BatchDropout(nn.Dropout):
    """Dropout whose mask is that of the whole batch, of which the input [B, ...] is the rows from `first_row` on."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.first_row, self.batch_size = 0, 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Dropout's name for it
        """As nn.Dropout; the same numbers for the rows, whoever computes them."""
        rows = input.shape[0]
        if not self.training or rows == self.batch_size:
            return F.dropout(input, self.p, self.training)
        whole = input.new_ones((self.batch_size, *input.shape[1:]))
        if input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last):
            whole = whole.contiguous(memory_format=torch.channels_last)
        return input * F.dropout(whole, self.p)[self.first_row : self.first_row + rows]


def share_dropout(network: nn.Module) -> list[BatchDropout]:
    """Put a BatchDropout in the place of each Dropout that drops anything; those now in the network."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout and child.p > 0:
                setattr(parent, name, BatchDropout(child.p).train(child.training))
    return [module for module in network.modules() if isinstance(module, BatchDropout)]


def take_rows(dropouts: Sequence[BatchDropout], rows: slice, batch_size: int) -> None:
    """Tell which rows of the whole batch come next. The generator must be seeded alike for all parts of a batch."""
    for dropout in dropouts:
        dropout.first_row, dropout.batch_size = rows.start, batch_size
