"""One layer of a bidirectional GRU on packed sequences, of linear layers: pruning and masks find its weights in them.

Its backward pass takes time in proportion to the sequences' length; that of torch.nn.GRU on a CPU to its square.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Packing:
    """Where the items of padded sequences [B, L] lie in packed rows [P]: step after step, the longest sequence first.

    `sequence`, `step`: of each row, int64 [P]. `reverse`: the row of the item that is as far from its sequence's end as
    this one is from its start. `sizes`: how many sequences there are still at each step.
    """

    sequence: Tensor
    step: Tensor
    reverse: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> Self:
        """Of sequences of these lengths, int64 [B], 1 or more."""
        lengths = lengths.cpu()
        order = lengths.argsort(descending=True, stable=True)
        ordered = lengths[order]
        steps = torch.arange(int(ordered[0]), device="cpu")
        step, rank = (steps.unsqueeze(1) < ordered).nonzero().unbind(1)
        sizes = step.bincount()
        first_rows = sizes.cumsum(0) - sizes
        reverse = first_rows[ordered[rank] - 1 - step] + rank
        return cls(order[rank].to(device), step.to(device), reverse.to(device), tuple(sizes.tolist()))

    def pack(self, padded: Tensor) -> Tensor:
        """[P, ...] of [B, L, ...]."""
        return padded[self.sequence, self.step]

    def unpack(self, rows: Tensor, length: int) -> Tensor:
        """[B, length, ...] of [P, ...], 0 in the padding."""
        padded = rows.new_zeros(self.sizes[0], length, *rows.shape[1:])
        return padded.index_put((self.sequence, self.step), rows)


class GRULayer(nn.Module):
    """One layer in both directions: rows [P, inputs] to [P, 2 hidden_size], forward before backward.

    Gates are ordered as in torch.nn.GRU: reset, update, new. The widths are those that its linear layers have.
    """

    def __init__(self, inputs: int, hidden_size: int) -> None:
        super().__init__()
        self.input, self.recurrent = nn.ModuleList(), nn.ModuleList()
        for _ in ("forward", "backward"):
            self.input.append(nn.Linear(inputs, 3 * hidden_size))
            self.recurrent.append(nn.Linear(hidden_size, 3 * hidden_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As torch.nn.GRU does: uniform within 1 / sqrt(hidden_size)."""
        for parameter in self.parameters():
            bound = (len(parameter) // 3) ** -0.5
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, rows: Tensor, packing: Packing) -> Tensor:
        """Rows in the packing's order, and so is what comes out."""
        forward, backward = (layer(rows) for layer in self.input)
        inputs = torch.stack([forward, backward.index_select(0, packing.reverse)])
        weights = torch.stack([layer.get_parameter("weight") for layer in self.recurrent])
        biases = torch.stack([layer.get_parameter("bias") for layer in self.recurrent])
        forward, backward = _Recurrence.apply(inputs, weights, biases, packing.sizes)
        return torch.cat([forward, backward.index_select(0, packing.reverse)], dim=1)


class _Recurrence(torch.autograd.Function):
    """The states h_t of D GRUs at once, on packed sequences that all begin at step 0: [D, P, H].

    From x_t's part of the gates, inputs [D, P, 3H], recurrent weights [D, 3H, H] and biases [D, 3H]:
    r, z = sigmoid(x + W h), n = tanh(x_n + r (W_n h)), h_t = (1 - z) n + z h_{t-1}.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weights: Tensor, biases: Tensor, sizes: tuple[int, ...]) -> Tensor:
        hidden = weights.shape[2]
        gates, before = inputs.clone(), inputs.new_empty(*inputs.shape[:2], hidden)
        states, new_of_state = torch.empty_like(before), torch.empty_like(before)
        state, transposed, biases = inputs.new_zeros(len(inputs), sizes[0], hidden), weights.mT, biases.unsqueeze(1)
        for rows in _steps(sizes):
            state = state[:, : rows.stop - rows.start]
            before[:, rows] = state
            of_state = torch.baddbmm(biases, state, transposed)
            reset_update = gates[:, rows, : 2 * hidden].add_(of_state[..., : 2 * hidden]).sigmoid_()
            reset, update = reset_update.chunk(2, dim=2)
            new_of_state[:, rows] = of_state[..., 2 * hidden :]
            new = gates[:, rows, 2 * hidden :].addcmul_(reset, of_state[..., 2 * hidden :]).tanh_()
            state = torch.lerp(new, state, update)
            states[:, rows] = state
        ctx.save_for_backward(gates, before, new_of_state, weights)
        ctx.sizes = sizes
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        gates, before, new_of_state, weights = ctx.saved_tensors
        reset, update, new = gates.chunk(3, dim=2)
        by_new = (1 - update) * (1 - new.square())
        by_reset = by_new * new_of_state * reset * (1 - reset)
        by_update = (before - new) * update * (1 - update)
        # dh_t times these: the gradients of r, z and W_n h, which a state feeds, and of x_n.
        by_state = torch.stack([by_reset, by_update, by_new * reset, by_new], dim=2)
        grads = torch.empty_like(by_state)
        carried = grad_states[:, :0]
        for rows in reversed(_steps(ctx.sizes)):
            grad = grad_states[:, rows].clone()
            grad[:, : carried.shape[1]] += carried
            grads[:, rows] = grad.unsqueeze(2) * by_state[:, rows]
            carried = torch.bmm(grads[:, rows, :3].flatten(2), weights).addcmul_(grad, update[:, rows])
        of_state = grads[:, :, :3].flatten(2)
        of_inputs = torch.cat([grads[:, :, :2], grads[:, :, 3:]], dim=2).flatten(2)  # a list of places would be sent
        return of_inputs, of_state.mT @ before, of_state.sum(1), None


def _steps(sizes: tuple[int, ...]) -> list[slice]:
    """The rows of each step."""
    return [slice(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0))]
