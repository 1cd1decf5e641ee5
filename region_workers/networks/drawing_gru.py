"""The network of vector drawings: ChiroDiff's bidirectional GRU (arXiv 2304.03785), as a diffusers model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from region_workers.networks.gru import GRULayer, Packing
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
