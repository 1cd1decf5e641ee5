"""Importance: one score for each prunable channel; the lowest go first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from region_workers.pruning.groups import ChannelGroup, Member

Importance = Literal["magnitude", "taylor", "diff-pruning", "random"]
_SCORED = ("out", "in")  # torch-pruning's choice: norms and embeddings follow, they have no say
_BLOCK = 1 << 18  # numbers: a megabyte


@torch.no_grad()
def channel_scores(
    groups: Sequence[ChannelGroup],
    parameters: Mapping[str, Tensor],
    importance: Importance,
    gradients: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """One 1-D float tensor (channels,) for each group, on the parameters' device.

    `parameters` (and for taylor and diff-pruning `gradients`) are tensors by the model's parameter names. A weight's
    contribution is w² for magnitude and |w·gradient| for taylor and diff-pruning, which differ only in how the
    gradients were accumulated; a channel's score is their sum over its part of a convolution or linear layer,
    averaged over the group's layers (torch-pruning's group importances with reduction "mean" and no normalizer).
    random draws from `generator`, on its device. ValueError if what an importance needs is missing.
    """
    if importance == "random":
        if generator is None:
            raise ValueError("generator = None: expected a torch.Generator for random importance. Pass a seeded one.")
        return [torch.rand(group.size, generator=generator, device=generator.device) for group in groups]
    if importance != "magnitude" and gradients is None:
        raise ValueError(f"gradients = None: expected one for each weight for {importance} importance.")
    sums = _SideSums(parameters, None if importance == "magnitude" else gradients)
    return [_group_score(group, sums) for group in groups]


def _group_score(group: ChannelGroup, sums: _SideSums) -> Tensor:
    scored = [member for member in group.members if member.kind in _SCORED]
    assert scored, f"{group.root}: no convolution or linear layer to score"
    total = sums.of(scored[0]).clone()
    for member in scored[1:]:
        total += sums.of(member)
    # A concatenation may show a layer the same group twice: that is one side of one layer.
    return total / len({(member.layer, member.kind) for member in scored})


class _SideSums:
    """Each weight's contributions, summed over its output side and over its input side, computed once a weight."""

    def __init__(self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None) -> None:
        self._parameters = parameters
        self._gradients = gradients
        self._sums: dict[str, dict[str, Tensor]] = {}

    def of(self, member: Member) -> Tensor:
        """The sums (channels,) of the group's channels in this layer."""
        name = f"{member.layer}.weight"
        if name not in self._sums:
            self._sums[name] = self._of_weight(name)
        return self._sums[name][member.kind][member.indices]

    def _of_weight(self, name: str) -> dict[str, Tensor]:
        weight = self._parameters[name].detach()
        gradient = None if self._gradients is None else self._gradients[name].detach()
        outputs, inputs = weight.shape[:2]
        by_output = torch.empty(outputs, device=weight.device)
        by_input_and_place = torch.zeros(weight.shape[1:], device=weight.device)
        for rows in _blocks(weight):
            part = _contributions(weight[rows], None if gradient is None else gradient[rows])
            by_output[rows] = part.reshape(len(part), -1).sum(1)
            by_input_and_place += part.sum(0)
        return {"out": by_output, "in": by_input_and_place.reshape(inputs, -1).sum(1)}


def _blocks(weight: Tensor) -> list[slice]:
    """Rows that fit a core's cache together; on a GPU all at once."""
    rows = max(1, _BLOCK // weight[0].numel()) if weight.device.type == "cpu" else len(weight)
    return [slice(start, start + rows) for start in range(0, len(weight), rows)]


def _contributions(weight: Tensor, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        return weight.float().square()
    return (weight.float() * gradient.float()).abs_()
