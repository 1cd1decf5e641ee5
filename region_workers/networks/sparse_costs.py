"""What a sparse network would cost if nothing were computed for a masked weight: theoretical, for no device does so."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from region_workers.networks.drawing_gru import DrawingGRU
from region_workers.networks.packed_weights import stored_bytes
from region_workers.networks.supported import network_inputs
from region_workers.pruning.groups import meta_copy
from region_workers.pruning.weight_masks import kept_counts, maskable_shapes
from schemas.sizes import SparseCosts
from schemas.sparsity import SparsityPlan


def sparse_costs(
    network: nn.Module, params: int, dense_macs: int, macs_of_weights: Mapping[str, int], plan: SparsityPlan
) -> SparseCosts:
    """Of a network that has `params` parameters and `dense_macs`, the attention's products included, if it is dense.

    `macs_of_weights`: as `weight_macs` counts them.
    """
    shapes = maskable_shapes(network)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    counts = kept_counts(shapes, plan.sparsity, plan.distribution)
    maskable, kept = sum(sizes.values()), sum(counts.values())
    saved = sum((1 - counts[name] / sizes[name]) * macs for name, macs in macs_of_weights.items())
    forward = dense_macs - saved
    dense_bytes = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    not_stored = sum(sizes[name] * 4 - stored_bytes(sizes[name], counts[name]) for name in shapes)
    return SparseCosts(
        maskable=maskable,
        kept=kept,
        kept_params=params - maskable + kept,
        forward_macs=round(forward),
        step_macs=round(_step(forward, dense_macs, plan)),
        stored_bytes=dense_bytes - not_stored,
        dense_bytes=dense_bytes,
    )


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
