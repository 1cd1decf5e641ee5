"""What a network costs: parameters and multiply-accumulates, counted on the meta device."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from region_workers.networks.dense import build_dense, example_inputs
from region_workers.networks.drawing_gru import DrawingGRU
from region_workers.networks.pruned_network import NoFreshWeights
from region_workers.networks.sparse_costs import SparseCosts, sparse_costs, weight_macs
from region_workers.pruning.groups import ChannelGroup, find_groups, meta_copy
from region_workers.pruning.mask import compute_mask, kept_channels
from region_workers.pruning.slim import slim
from schemas.model import ModelPlan
from schemas.plan import DataPlan
from schemas.sparsity import SparsityPlan

_CONTEXT = "context_embedding."


@dataclass(frozen=True)
class Costs:
    """Parameters, and multiply-accumulates of one forward pass by two counters.

    `params` counts the UNet, as the paper does: not the table of class vectors that CrossAttn blocks attend to
    (`context_embedding`, classes + 1 rows; 0.51 M for ImageNet), which is never pruned and which CompVis keeps beside
    its UNet; a class embedding that is added to the time embedding counts.

    `macs` is torch-pruning's counter, which the paper used: convolutions, linear layers, norms and activations, but
    not the attention's matrix products. `macs_with_attention` is half of torch.utils.flop_counter's operations:
    convolutions, linear layers and the attention's products (CIFAR-10: 6.06 G and 6.22 G). Of a DrawingGRU both are
    the latter, of a drawing of POINTS_COUNTED points.
    """

    params: int
    macs: int
    macs_with_attention: int


def count_costs(model: nn.Module, example_inputs: Mapping[str, Tensor]) -> Costs:
    """The costs of `model` for one forward pass on `example_inputs`: forward's keyword arguments.

    Both may be on any device: a copy without weights is counted. `macs` are those of one sample of the batch,
    `macs_with_attention` too.
    """
    twin = meta_copy(model)
    for norm in (layer for layer in twin.modules() if isinstance(layer, nn.GroupNorm)):
        # On the meta device it takes a third of the time, and both counters ask for shapes alone.
        norm.forward = _unchanged  # type: ignore[method-assign, assignment]
    inputs = {name: tensor.to("meta") for name, tensor in example_inputs.items()}
    macs, with_attention = _count_macs(twin, inputs)
    if isinstance(twin, DrawingGRU):  # torch-pruning's counter does not see its recurrence
        macs = with_attention
    params = sum(weight.numel() for name, weight in twin.named_parameters() if not name.startswith(_CONTEXT))
    return Costs(params, macs, with_attention)


class CostCounter:
    """The costs of one dense network and of its prunings; the groups are found once."""

    def __init__(self, network: nn.Module, example_inputs: Mapping[str, Tensor]) -> None:
        """`network` is the dense one, on any device; it is left alone. `example_inputs` as for `find_groups`."""
        self._network = meta_copy(network)
        self._inputs = example_inputs
        self._at: dict[float, Costs] = {}
        self._counted: dict[tuple[int, ...], Costs] = {}
        self._weight_macs: dict[float, dict[str, int]] = {}  # by ratio

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The network's channel groups. ValueError if it cannot be pruned."""
        return find_groups(self._network, self._inputs)

    def dense(self) -> Costs:
        """The costs of the network as it is."""
        return self.at(0.0)

    def at(self, ratio: float) -> Costs:
        """The costs, for one sample, of the network pruned at `ratio`; they do not depend on which channels stay."""
        if ratio not in self._at:
            self._at[ratio] = self._count(self.network_at(ratio) if ratio else self._network)
        return self._at[ratio]

    def sparse_at(self, ratio: float, plan: SparsityPlan) -> SparseCosts:
        """In theory, of the network pruned at `ratio` and masked as planned."""
        network, dense = self.network_at(ratio), self.at(ratio)
        if ratio not in self._weight_macs:
            self._weight_macs[ratio] = weight_macs(network, self._inputs)
        return sparse_costs(network, dense.params, dense.macs_with_attention, self._weight_macs[ratio], plan)

    def network_at(self, ratio: float) -> nn.Module:
        """A network of its own of that size, on the meta device."""
        network = copy.deepcopy(self._network)
        if ratio:
            mask = compute_mask(self.groups, [torch.zeros(group.size) for group in self.groups], ratio)
            slim(network, kept_channels(self.groups, mask))
        return network

    def _count(self, network: nn.Module) -> Costs:
        shapes = tuple(side for weight in network.parameters() for side in weight.shape)
        if shapes not in self._counted:
            self._counted[shapes] = count_costs(network, self._inputs)
        return self._counted[shapes]


@lru_cache(maxsize=8)
def cost_counter(model: ModelPlan, data: DataPlan) -> CostCounter:
    """The counter of a plan's dense network, on the meta device; the last few are kept."""
    with torch.device("meta"), NoFreshWeights():
        network = build_dense(model, data)
    return CostCounter(network, example_inputs(model, data))


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _count_macs(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[int, int]:
    """Costs' `macs` and `macs_with_attention`, from one forward pass."""
    from torch.utils.flop_counter import FlopCounterMode
    from torch_pruning.utils import count_ops_and_params

    # Positional inputs, for the counter finds the batch size in no others.
    call = inspect.signature(model.forward).bind(**inputs)
    call.apply_defaults()
    counter = FlopCounterMode(display=False)
    with counter:
        macs, _ = count_ops_and_params(model, call.args)
    samples = len(next(iter(inputs.values())))
    return int(macs), int(counter.get_total_flops()) // 2 // samples
