"""The network of vector drawings: ChiroDiff's bidirectional GRU (arXiv 2304.03785), as a diffusers model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal, Self

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from region_workers.networks.pruned_network import LoadedStrictly
from region_workers.pruning.groups import ChannelGroup, Member
from schemas.errors import problem, shown
from schemas.job import KeptChannels

_FEATURES = 5  # position, velocity and pen
_FREQUENCY_SCALE = 4.0


class DrawingGRU(LoadedStrictly, ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Sees the noise in drawings of rows (x, y, pen): positions (`coordinates` "absolute") or steps between them.

    - `frequencies`: time is seen as their sines and cosines; drawn from N(0, 1) once, for a dense network.
    - `hidden_size`, `num_layers`: of the GRU, in each direction.
    - `num_train_timesteps`: T, in which time is counted.
    - `length_counts`: how many drawings of the training have 0, 1, 2, ... points, for who samples; None: unknown.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        frequencies: Sequence[float],
        hidden_size: int = 96,
        num_layers: int = 3,
        coordinates: Literal["absolute", "delta"] = "absolute",
        num_train_timesteps: int = 1000,
        length_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        _check_time(frequencies, num_train_timesteps)
        time_width = 2 * len(frequencies)
        inputs = (_FEATURES + time_width, *[2 * hidden_size] * (num_layers - 1))
        self.layers = nn.ModuleList(GRULayer(width, hidden_size) for width in inputs)
        self.out_proj = nn.Linear(2 * hidden_size, hidden_size)
        self.final = nn.Linear(hidden_size + time_width, 3)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        lengths: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """The noise in `sample` [B, L, 3]: as large, 0 behind each drawing's length.

        `timestep`: [B] or a number, from 0; `lengths`: int64 [B], best on the CPU, from 1 to L; None: all are L long.
        What lies behind a drawing's length changes nothing. ValueError for other shapes or lengths.
        """
        packing = Packing.of(_checked_lengths(sample, lengths), sample.device)
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        time = self._embed(timesteps).to(sample.dtype)[packing.sequence]
        rows = torch.cat([packing.pack(self._features(sample)), time], dim=1)
        for layer in self.layers:
            rows = layer(rows, packing)
        noise = self.final(torch.cat([self.out_proj(rows), time], dim=1))
        padded = packing.unpack(noise, sample.shape[1])
        return UNet2DOutput(sample=padded) if return_dict else (padded,)

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """What can be pruned: the units of each layer in each direction, and the outputs of `out_proj`.

        A unit is three outputs of its layer, one for each gate, an input of it, and one of the layers after it.
        """
        size, groups = self.config.hidden_size, []
        for number in range(self.config.num_layers):
            after = [f"layers.{number + 1}.input.{direction}" for direction in range(2)]
            after = after if number + 1 < self.config.num_layers else ["out_proj"]
            for direction in range(2):
                own = [f"layers.{number}.{side}.{direction}" for side in ("input", "recurrent")]
                gates = [slice(gate * size, (gate + 1) * size) for gate in range(3)]
                members = [Member(layer, "out", gate, 3 * size) for layer in own for gate in gates]
                members += [Member(own[1], "in", slice(0, size), size)]
                seen = slice(direction * size, (direction + 1) * size)
                members += [Member(layer, "in", seen, 2 * size) for layer in after]
                groups.append((own[0], members))
        final_inputs = size + 2 * len(self.config.frequencies)
        projected = slice(0, size)
        ends = [Member("out_proj", "out", projected, size), Member("final", "in", projected, final_inputs)]
        groups.append(("out_proj", ends))
        return tuple(
            ChannelGroup(root, size, 0, tuple(members), order=len(groups) - place)
            for place, (root, members) in enumerate(groups)
        )

    def narrow_config(self, kept: Mapping[str, KeptChannels]) -> dict[str, Any]:
        """The config of the network with these kept channels: as many in every group, so that one width says it."""
        projected = kept["out_proj"].outputs if "out_proj" in kept else None
        return {**self.config, "hidden_size": self.config.hidden_size if projected is None else len(projected)}

    def _embed(self, timestep: Tensor) -> Tensor:
        """Fourier features of time in (0, 1]: float32 [B, 2 frequencies]."""
        frequencies = torch.tensor(self.config.frequencies, device=timestep.device)
        share = (timestep + 1).float() / self.config.num_train_timesteps
        angles = 2 * math.pi * _FREQUENCY_SCALE * share.unsqueeze(1) * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def _features(self, sample: Tensor) -> Tensor:
        """[B, L, 5]: the rows as they are, and velocities for positions or positions for steps."""
        places = sample[..., :2]
        if self.config.coordinates == "absolute":
            other = torch.cat([places[:, :1], places.diff(dim=1)], dim=1)
        else:
            other = places.cumsum(dim=1)
        return torch.cat([sample, other], dim=2)


def _check_time(frequencies: Sequence[float], num_train_timesteps: int) -> None:
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in frequencies):
        raise ValueError(problem("frequencies", shown(frequencies), "finite numbers", "Give those of the training."))
    if type(num_train_timesteps) is not int or num_train_timesteps < 1:
        expected = "a whole number of 1 or more"
        raise ValueError(problem("num_train_timesteps", shown(num_train_timesteps), expected, "Give the training's."))


def _checked_lengths(sample: Tensor, lengths: Tensor | None) -> Tensor:
    """The drawings' lengths, int64 [B], on the CPU."""
    if sample.ndim != 3 or sample.shape[2] != 3:
        raise ValueError(problem("sample", tuple(sample.shape), "drawings [B, L, 3]", "Give rows of x, y and pen."))
    if lengths is None:
        return torch.full((len(sample),), sample.shape[1], device="cpu")
    lengths = lengths.cpu()
    if lengths.shape != (len(sample),) or int(lengths.min()) < 1 or int(lengths.max()) > sample.shape[1]:
        expected = f"{len(sample)} lengths from 1 to {sample.shape[1]}"
        raise ValueError(problem("lengths", lengths.tolist(), expected, "Give one for each drawing."))
    return lengths


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

    It is of linear layers: pruning and masks find its weights in them. Its backward pass takes time in proportion to
    the sequences' length; that of torch.nn.GRU on a CPU to its square.

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
