"""A plan's networks as they are initialised: what they cost to run does not depend on their training."""

import torch
from torch import nn

from ebdiff_orchestrator.ensemble.loading import scheduler_of
from ebdiff_orchestrator.ensemble.routes import Routes
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


def owners_of_steps(plan: Plan, spacing: str, steps: int) -> list[int]:
    """Which expert takes each of the steps that a spacing has."""
    scheduler = scheduler_of(plan.diffusion, plan.sampling.model_copy(update={"spacing": spacing}))
    scheduler.set_timesteps(steps)
    routes = Routes(plan.routes(), [region.name for region in plan.regions])
    return [routes.owner(timestep) for timestep in scheduler.timesteps.tolist()]
