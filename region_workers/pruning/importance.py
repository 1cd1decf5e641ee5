"""Importance: one score for each prunable channel; the lowest go first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from region_workers.pruning.groups import ChannelGroup, Member
from region_workers.pruning.mask import group_mask
from schemas.experiment import GradientRule, Importance

_SCORED = ("out", "in")
_BLOCK = 1 << 18  # numbers: a megabyte


@torch.no_grad()
def channel_scores(
    groups: Sequence[ChannelGroup],
    parameters: Mapping[str, Tensor],
    importance: Importance,
    gradients: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    rule: GradientRule = "released",
) -> list[Tensor]:
    """One 1-D float tensor (channels,) for each group, on the parameters' device, of the network as it is.

    `parameters` (and for taylor and diff-pruning `gradients`) are tensors by the model's parameter names. A channel's
    score sums over its part of each convolution and linear layer of its group

    - magnitude: w², as torch-pruning's group magnitude does (reduction "mean"; it also counts LayerNorms, we do not);
    - taylor and diff-pruning, which differ only in how gradients were added up: (w·gradient)², and |w·gradient| of the
      group's norms, as the released code of EB-Diff-Train and Diff-Pruning does; by the rule "torch-pruning"
      |w·gradient|, that library's group Taylor importance (reduction "mean"; its LayerNorms again left out).

    random draws from `generator`, on its device. ValueError if what an importance needs is missing.
    """
    if importance == "random":
        if generator is None:
            raise ValueError("generator = None: expected a torch.Generator for random importance. Pass a seeded one.")
        return [torch.rand(group.size, generator=generator, device=generator.device) for group in groups]
    terms = _Terms(parameters, importance, gradients, rule)
    sums = _WholeSums(terms)
    return [_group_score(group, terms, sums.sum_of) for group in groups]


@torch.no_grad()
def sequential_masks(
    groups: Sequence[ChannelGroup],
    parameters: Mapping[str, Tensor],
    importance: Importance,
    gradients: Mapping[str, Tensor] | None = None,
    rule: GradientRule = "released",
) -> Callable[[float], Tensor]:
    """A function from a pruning ratio to the mask (prunable_bits,) whose groups are scored one after another.

    Each group is scored on what the groups before it, in `order`, have left of the network, and without a layer that
    sees it twice (the first one behind a skip from its own group), as in the released code, whose masks these are to
    the bit; otherwise as in `channel_scores`.
    """
    terms = _Terms(parameters, importance, gradients, rule)
    tables: dict[str, Tensor] = {}

    def mask(ratio: float) -> Tensor:
        left = _RemainingSums(terms, tables)
        masks = {}
        for group in sorted(groups, key=lambda group: group.order):
            masks[group.root] = group_mask(group, _group_score(_seen_once(group), terms, left.sum_of), ratio)
            left.narrow(group, masks[group.root])
        return torch.cat([masks[group.root] for group in groups])

    return mask


def _seen_once(group: ChannelGroup) -> ChannelGroup:
    """The group without its layers that see it more than once."""
    times = Counter((member.layer, member.kind) for member in group.members)
    once = tuple(member for member in group.members if times[member.layer, member.kind] == 1)
    return replace(group, members=once) if any(member.kind in _SCORED for member in once) else group


def _group_score(group: ChannelGroup, terms: _Terms, side_sum: Callable[[Member], Tensor]) -> Tensor:
    scored = [member for member in group.members if member.kind in _SCORED]
    assert scored, f"{group.root}: no convolution or linear layer to score"
    total = side_sum(scored[0]).clone()
    for member in scored[1:]:
        total += side_sum(member)
    if terms.counts_norms:
        for member in group.members:
            if member.kind == "norm":
                total += terms.of_norm(member.layer)[member.indices]
    # A concatenation may show a layer the same group twice: that is one side of one layer.
    return total / len({(member.layer, member.kind) for member in scored})


class _Terms:
    """What each number of a weight adds to the scores of its channels: w², (w·gradient)² or |w·gradient|."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        importance: Importance,
        gradients: Mapping[str, Tensor] | None,
        rule: GradientRule,
    ) -> None:
        if importance != "magnitude" and gradients is None:
            raise ValueError(f"gradients = None: expected one for each weight for {importance} importance.")
        self._parameters = parameters
        self._gradients = None if importance == "magnitude" else gradients
        self._squared = self._gradients is None or rule == "released"
        self.counts_norms = self._gradients is not None and rule == "released"

    def weight(self, layer: str) -> Tensor:
        return self._parameters[f"{layer}.weight"].detach()

    def of(self, layer: str, rows: slice) -> Tensor:
        """The terms of some rows of its weight, float32 in the weight's shape."""
        values = self.weight(layer)[rows].float()
        if self._gradients is None:
            return values.square()
        values = values * self._gradients[f"{layer}.weight"].detach()[rows].float()
        return values.square_() if self._squared else values.abs_()

    def of_norm(self, layer: str) -> Tensor:
        """|w·gradient| of a norm (channels,)."""
        assert self._gradients is not None
        return (self.weight(layer).float() * self._gradients[f"{layer}.weight"].detach().float()).abs_()


class _WholeSums:
    """Each weight's terms, summed over its output side and over its input side, computed once a weight."""

    def __init__(self, terms: _Terms) -> None:
        self._terms = terms
        self._sums: dict[str, dict[str, Tensor]] = {}

    def sum_of(self, member: Member) -> Tensor:
        """The sums (channels,) of the group's channels in this layer."""
        if member.layer not in self._sums:
            self._sums[member.layer] = self._of_weight(member.layer)
        return self._sums[member.layer][member.kind][member.indices]

    def _of_weight(self, layer: str) -> dict[str, Tensor]:
        weight = self._terms.weight(layer)
        outputs, inputs = weight.shape[:2]
        by_output = torch.empty(outputs, device=weight.device)
        by_input_and_place = torch.zeros(weight.shape[1:], device=weight.device)
        for rows in _blocks(weight):
            part = self._terms.of(layer, rows)
            by_output[rows] = part.reshape(len(part), -1).sum(1)
            by_input_and_place += part.sum(0)
        return {"out": by_output, "in": by_input_and_place.reshape(inputs, -1).sum(1)}


class _RemainingSums:
    """What is left of a network whose groups are pruned one after another. `tables`: each weight's terms, kept."""

    def __init__(self, terms: _Terms, tables: dict[str, Tensor]) -> None:
        self._terms, self._tables = terms, tables
        self._sides: dict[tuple[str, str], Tensor] = {}

    def sum_of(self, member: Member) -> Tensor:
        """As `_WholeSums.sum_of`, over what is left of the layer's other side."""
        table = self._table(member.layer)
        if member.kind == "out":
            return (table @ self._side(member.layer, "in"))[member.indices]
        return (self._side(member.layer, "out") @ table)[member.indices]

    def narrow(self, group: ChannelGroup, mask: Tensor) -> None:
        """Take the group's dropped channels away, in all its layers."""
        for member in group.members:
            if member.kind in _SCORED:
                self._side(member.layer, member.kind)[member.indices] = mask.float()

    def _side(self, layer: str, kind: str) -> Tensor:
        """1 for each output or input of the layer that is left, else 0."""
        if (layer, kind) not in self._sides:
            table = self._table(layer)
            self._sides[layer, kind] = table.new_ones(table.shape[0 if kind == "out" else 1])
        return self._sides[layer, kind]

    def _table(self, layer: str) -> Tensor:
        """The layer's terms [outputs, inputs], a kernel's places summed."""
        if layer not in self._tables:
            weight = self._terms.weight(layer)
            outputs, inputs = weight.shape[:2]
            places = weight.new_ones(weight[0, 0].numel(), dtype=torch.float32)
            # A product with ones: half the time of a sum over so few numbers.
            sums = [self._terms.of(layer, rows).reshape(-1, len(places)) @ places for rows in _blocks(weight)]
            self._tables[layer] = torch.cat(sums).view(outputs, inputs)
        return self._tables[layer]


def _blocks(weight: Tensor) -> list[slice]:
    """Rows that fit a core's cache together; on a GPU all at once."""
    rows = max(1, _BLOCK // weight[0].numel()) if weight.device.type == "cpu" else len(weight)
    return [slice(start, start + rows) for start in range(0, len(weight), rows)]
