"""What a network costs: parameters and multiply-accumulates, counted on the meta device; a sparse one in theory."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from region_workers.networks.dense import build_dense
from region_workers.networks.drawing_gru import DrawingGRU
from region_workers.networks.packed_weights import stored_bytes
from region_workers.networks.pruned_network import NoFreshWeights
from region_workers.networks.supported import network_inputs
from region_workers.pruning.groups import ChannelGroup, find_groups, meta_copy
from region_workers.pruning.mask import kept_at, removed_channels
from region_workers.pruning.slim import slim
from region_workers.pruning.weight_masks import kept_counts, maskable_shapes
from schemas.experiment import SparsityPlan
from schemas.manifest import Costs, SparseCosts
from schemas.model import ModelPlan
from schemas.plan import DataPlan

_CONTEXT = "context_embedding."


def count_costs(model: nn.Module, example_inputs: Mapping[str, Tensor]) -> Costs:
    """The costs of `model` for one forward pass on `example_inputs`: forward's keyword arguments.

    Both may be on any device: a copy without weights is counted. `macs` are those of one sample of the batch,
    `macs_with_attention` too.
    """
    twin = meta_copy(model)
    for norm in (layer for layer in twin.modules() if isinstance(layer, nn.GroupNorm)):
        # On the meta device it takes a third of the time, and both counters ask for shapes alone.
        norm.forward = nn.Identity().forward  # type: ignore[method-assign]
    inputs = {name: tensor.to("meta") for name, tensor in example_inputs.items()}
    macs, with_attention = _count_macs(twin, inputs)
    if isinstance(twin, DrawingGRU):  # torch-pruning's counter does not see its recurrence
        macs = with_attention
    params = sum(weight.numel() for name, weight in twin.named_parameters() if not name.startswith(_CONTEXT))
    return Costs(params=params, macs=macs, macs_with_attention=with_attention)


class CostCounter:
    """The costs of one dense network and of its prunings; groups are found, and each size counted, once."""

    def __init__(self, network: nn.Module, example_inputs: Mapping[str, Tensor]) -> None:
        """`network` is the dense one, on any device; it is left alone. `example_inputs` as for `find_groups`."""
        self._network = meta_copy(network)
        self._inputs = example_inputs
        self._sizes: dict[tuple[int, ...], _Size] = {}  # by the channels that each group loses; (): dense

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The network's channel groups. ValueError if it cannot be pruned."""
        return find_groups(self._network, self._inputs)

    def dense(self) -> Costs:
        """The costs of the network as it is."""
        return self.at(0.0)

    def at(self, ratio: float) -> Costs:
        """The costs, for one sample, of the network pruned at `ratio`; they do not depend on which channels stay."""
        return self._size(ratio).costs

    def sparse_at(self, ratio: float, plan: SparsityPlan) -> SparseCosts:
        """In theory, of the network pruned at `ratio` and masked as planned."""
        return self._size(ratio).sparse(plan)

    def network_at(self, ratio: float) -> nn.Module:
        """A network of its own of that size, on the meta device."""
        return copy.deepcopy(self._size(ratio).network)

    def _size(self, ratio: float) -> _Size:
        groups = self.groups if ratio else ()
        removed = tuple(removed_channels(group.size, group.norm_groups, ratio) for group in groups)
        if removed not in self._sizes:
            network = copy.deepcopy(self._network)
            if ratio:
                slim(network, kept_at(groups, ratio))
            self._sizes[removed] = _Size(network, self._inputs)
        return self._sizes[removed]


@dataclass(frozen=True)
class _Size:
    """A network on the meta device, and what it costs, counted when it is first asked for."""

    network: nn.Module
    inputs: Mapping[str, Tensor]

    @cached_property
    def costs(self) -> Costs:
        return count_costs(self.network, self.inputs)

    @cached_property
    def weight_macs(self) -> dict[str, int]:
        return weight_macs(self.network, self.inputs)

    def sparse(self, plan: SparsityPlan) -> SparseCosts:
        """In theory, of the network masked as planned."""
        shapes, dense_macs = maskable_shapes(self.network), self.costs.macs_with_attention
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        counts = kept_counts(shapes, plan.sparsity, plan.distribution)
        maskable, kept = sum(sizes.values()), sum(counts.values())
        forward = dense_macs - sum((1 - counts[name] / sizes[name]) * macs for name, macs in self.weight_macs.items())
        dense_bytes = sum(weight.numel() * weight.element_size() for weight in self.network.parameters())
        not_stored = sum(sizes[name] * 4 - stored_bytes(sizes[name], counts[name]) for name in shapes)
        return SparseCosts(
            maskable=maskable,
            kept=kept,
            kept_params=self.costs.params - maskable + kept,
            forward_macs=round(forward),
            step_macs=round(_step(forward, dense_macs, plan)),
            stored_bytes=dense_bytes - not_stored,
            dense_bytes=dense_bytes,
        )


def cost_counter(model: ModelPlan, data: DataPlan) -> CostCounter:
    """The counter of a plan's dense network, on the meta device; the last few are kept."""
    sizes = DataPlan.model_construct(resolution=data.resolution, channels=data.channels, drawings=data.drawings)
    return _counter(model, sizes)  # nothing else of the data matters


@lru_cache(maxsize=8)
def _counter(model: ModelPlan, data: DataPlan) -> CostCounter:
    with torch.device("meta"), NoFreshWeights():
        network = build_dense(model, data)
    return CostCounter(network, network_inputs(network))


def weight_macs(network: nn.Module, inputs: Mapping[str, Tensor] | None = None) -> dict[str, int]:
    """Multiply-accumulates that each maskable weight takes part in, for one sample, by parameter name.

    `inputs`: forward's keyword arguments, batch of one; those of `network_inputs` by default.
    """
    twin, found = meta_copy(network), dict[str, int]()
    inputs = inputs or network_inputs(twin)
    if isinstance(network, DrawingGRU):  # each weight once a point
        points = inputs["sample"].shape[1]
        return {name: points * math.prod(shape) for name, shape in maskable_shapes(network).items()}

    def count(weight: str, module: nn.Module, output: Tensor) -> None:
        values = module.get_parameter("weight")
        positions = output.numel() // values.shape[0]
        found[weight] = found.get(weight, 0) + positions * values.numel()

    for name, module in twin.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = f"{name}.weight"
            module.register_forward_hook(lambda layer, _, output, weight=weight: count(weight, layer, output))
    with torch.no_grad():
        twin(**{name: tensor.to("meta") for name, tensor in inputs.items()})
    return found


def _step(forward: float, dense: float, plan: SparsityPlan) -> float:
    """A forward and two backward passes; RigL's updates need the dense gradient (arXiv 1911.11134, appendix)."""
    if plan.method != "rigl":
        return 3 * forward
    return (3 * forward * plan.interval_steps + 2 * forward + dense) / (plan.interval_steps + 1)


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
