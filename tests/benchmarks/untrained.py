"""A plan's networks as they are initialised: what they cost to run does not depend on their training."""

from __future__ import annotations

import torch
from torch import nn

from region_workers.networks.costs import cost_counter
from region_workers.networks.dense import build_dense
from region_workers.networks.pruned_unet import extract_expert
from region_workers.pruning.mask import compute_mask, kept_channels
from schemas.plan import Plan


def untrained_networks(plan: Plan) -> tuple[nn.Module, list[nn.Module]]:
    """The plan's dense network and its experts, with fresh weights."""
    torch.manual_seed(0)
    dense = build_dense(plan.model, plan.data).eval()
    groups = cost_counter(plan.model, plan.data).groups
    scores = [torch.zeros(group.size) for group in groups]
    experts = [
        extract_expert(dense, kept_channels(groups, compute_mask(groups, scores, region.pruning_ratio)))
        for region in plan.regions
    ]
    return dense, experts
