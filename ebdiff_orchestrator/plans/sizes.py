"""The sizes of a plan's networks, counted, and the mistakes that only the networks show."""

from __future__ import annotations

from ebdiff_orchestrator.plans.data_checks import check_resolution
from region_workers.networks.costs import CostCounter
from region_workers.networks.pretrained import dense_counter
from region_workers.pruning.widths import check_ratio, realised_ratio
from schemas.errors import plan_error
from schemas.manifest import DenseSource
from schemas.plan import Plan
from schemas.regions import RegionPlan
from schemas.sizes import NetworkSizes, RegionSizes


def count_sizes(plan: Plan, dense: DenseSource | None = None) -> NetworkSizes:
    """Build the networks without weights and count them; `dense`: the plan's dense start as its manifest has it.

    Raises PlanError for a network that cannot be built or a pruning ratio that removes nothing or a whole group.
    """
    counter = _counter(plan, dense)
    for index, region in enumerate(plan.regions):
        check_ratio(counter.groups, region.pruning_ratio, f"regions.{index}.pruning_ratio")
    regions = tuple(_region_sizes(plan, region, counter) for region in plan.regions)
    return NetworkSizes(dense=counter.dense(), regions=regions)


def _region_sizes(plan: Plan, region: RegionPlan, counter: CostCounter) -> RegionSizes:
    ratio, sparsity = region.pruning_ratio, plan.sparsity_of(region)
    return RegionSizes(
        realised_ratio=realised_ratio(counter.groups, ratio),
        costs=counter.at(ratio),
        sparse=counter.sparse_at(ratio, sparsity) if sparsity else None,
    )


def _counter(plan: Plan, dense: DenseSource | None) -> CostCounter:
    check_resolution(plan)
    try:
        return dense_counter(plan.model, plan.data, dense)
    except (ValueError, TypeError, KeyError) as error:
        expected, remedy = "arguments that diffusers' UNet accepts", f"It says: {error}"
        raise plan_error("model", "the network", expected, remedy) from None
