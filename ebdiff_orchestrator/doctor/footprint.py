"""What a worker of a plan needs: an estimate of memory from the networks' shapes alone, without weights or a GPU.

Of a training step it counts what must be held: weights, gradients, Adam's moments, the EMA, and what the forward pass
keeps for the backward pass. Kernels' workspaces come on top, so a real step needs somewhat more.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from region_workers.networks.dense import build_dense, example_inputs
from region_workers.pruning.groups import find_groups
from region_workers.pruning.mask import compute_mask, kept_channels
from region_workers.pruning.slim import slim
from schemas.plan import Plan

_FLOAT_BYTES = 4
_PROCESS_BYTES = 3 << 29  # a Python process with torch, diffusers and Ray: 1.5 GiB
_CUDA_BYTES = 1 << 30  # a CUDA context with cuDNN and cuBLAS


@dataclass(frozen=True)
class Footprint:
    """Bytes of one worker of the largest network that the plan trains.

    `state`: weights, gradients, Adam's moments and EMA. `activations`: what one pass keeps for its backward pass.
    """

    params: int
    state_bytes: int
    activation_bytes: int

    def on_device_bytes(self) -> int:
        """On its GPU."""
        return self.state_bytes + self.activation_bytes + _CUDA_BYTES

    def on_host_bytes(self, uses_gpu: bool) -> int:
        """In its node's memory: everything without a GPU, else the process and the copy that a checkpoint makes."""
        return _PROCESS_BYTES + self.state_bytes + (0 if uses_gpu else self.activation_bytes)


def footprint(plan: Plan, processes: int) -> Footprint:
    """The footprint of one of a region's `processes` workers."""
    network, inputs = _largest_network(plan)
    samples = plan.training.batch_size // (processes * plan.training.gradient_accumulation)
    params = sum(parameter.numel() for parameter in network.parameters())
    copies = 4 + (plan.training.ema_decay is not None) + (processes > 1)  # DDP keeps the gradients twice
    per_sample = kept_for_backward_bytes(network, inputs)
    narrow = 2 if plan.training.precision == "bf16" else 1
    return Footprint(params, copies * params * _FLOAT_BYTES, max(1, samples) * per_sample // narrow)


def kept_for_backward_bytes(network: nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """What autograd keeps, parameters left out, of one sample's forward pass; network and inputs on the meta device."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()  # views of one tensor share it
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    samples = len(next(iter(inputs.values())))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network.train()(**inputs)
    bytes_kept = sum(storage.nbytes() for storage in kept.values())
    del output
    return int(bytes_kept) // samples


def _largest_network(plan: Plan) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """On the meta device: the dense network if a draw trains it, else the region's that is pruned least."""
    with torch.device("meta"):
        network = build_dense(plan.model, plan.data)
    inputs = {name: tensor.to("meta") for name, tensor in example_inputs(plan.model, plan.data).items()}
    ratio = min(region.pruning_ratio for region in plan.regions)
    if plan.draw.method == "one-shot" and ratio:
        groups = find_groups(network, inputs)
        mask = compute_mask(groups, [torch.zeros(group.size) for group in groups], ratio)
        network = copy.deepcopy(network)
        slim(network, kept_channels(groups, mask))
    return network, inputs
