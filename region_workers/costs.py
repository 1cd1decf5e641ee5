"""What a network costs: parameters and multiply-accumulates, counted on the meta device."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from region_workers.dense import build_dense, example_inputs
from region_workers.pruning.groups import find_groups
from region_workers.pruning.mask import compute_mask, kept_channels
from region_workers.pruning.slim import slim
from schemas.model import ModelPlan
from schemas.plan import DataPlan


@dataclass(frozen=True)
class Costs:
    """Parameters, and multiply-accumulates of one forward pass by torch-pruning's counter.

    The counter leaves out the attention's matrix products (CIFAR-10: 6.06 G without, 6.22 G with them).
    """

    params: int
    macs: int


def count_costs(model: nn.Module, example_inputs: Mapping[str, Tensor]) -> Costs:
    """The costs of `model`, on any device, for `example_inputs`: forward's keyword arguments, on the same device.

    torch-pruning counts on a copy of the model, so hand it a model on the meta device where one will do.
    """
    from torch_pruning.utils import count_ops_and_params

    # Positional inputs, for the counter finds the batch size in no others.
    call = inspect.signature(model.forward).bind(**example_inputs)
    call.apply_defaults()
    macs, params = count_ops_and_params(model, call.args)
    return Costs(params=int(params), macs=int(macs))


def dense_costs(model: ModelPlan, data: DataPlan) -> Costs:
    """The dense network's costs for one image."""
    return count_costs(_meta_network(model, data), example_inputs(data))


def region_costs(model: ModelPlan, data: DataPlan, ratio: float) -> Costs:
    """The costs, for one image, of the network pruned at `ratio`; they do not depend on which channels stay."""
    network = _meta_network(model, data)
    groups = find_groups(network, example_inputs(data))
    mask = compute_mask(groups, [torch.zeros(group.size) for group in groups], ratio)
    slim(network, kept_channels(groups, mask))
    return count_costs(network, example_inputs(data))


def _meta_network(model: ModelPlan, data: DataPlan) -> UNet2DModel:
    with torch.device("meta"):
        return build_dense(model, data)
