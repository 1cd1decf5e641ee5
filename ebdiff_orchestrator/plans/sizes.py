"""The sizes of a plan's networks, counted, and the mistakes that only the networks show."""

from ebdiff_orchestrator.plans.data_checks import check_resolution
from region_workers.networks.costs import CostCounter
from region_workers.networks.pretrained import dense_counter
from region_workers.pruning.mask import check_ratio, realised_ratio, removed_channels
from schemas.errors import plan_error
from schemas.manifest import DenseSource, NetworkSizes, RegionSizes
from schemas.plan import Plan
from schemas.regions import RegionPlan


def count_sizes(plan: Plan, dense: DenseSource | None = None) -> NetworkSizes:
    """Build the networks without weights and count them; `dense`: the plan's dense start as its manifest has it.

    Raises PlanError for a network that cannot be built or a pruning ratio that removes nothing or a whole group.
    """
    counter = _counter(plan, dense)
    for index, region in enumerate(plan.regions):
        check_ratio(counter.groups, region.pruning_ratio, f"regions.{index}.pruning_ratio")
    regions = tuple(_region_sizes(plan, region, counter) for region in plan.regions)
    return NetworkSizes(dense=counter.dense(), regions=regions)


def width_notes(plan: Plan) -> list[str]:
    """For people: the experts of which GroupNorm hides from the output how bright and of which colour an image is."""
    if plan.model.family == "vector":
        return []
    notes, channels, norm_groups = [], plan.model.block_out_channels[0], plan.model.norm_num_groups
    for index, region in enumerate(plan.regions):
        if channels - removed_channels(channels, norm_groups, region.pruning_ratio) == norm_groups:
            notes.append(
                f"regions.{index}.pruning_ratio = {region.pruning_ratio}: one channel is left in each of the "
                f"{norm_groups} norm groups before the expert's output, and GroupNorm takes its mean away. Small "
                "experts then draw false colours (docs/results.md): lower the ratio or model.norm_num_groups."
            )
    return notes


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
