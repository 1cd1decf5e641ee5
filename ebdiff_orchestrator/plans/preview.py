"""What a plan will run: each network's size, and the mistakes that only the network shows. Nothing is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from ebdiff_orchestrator.plans.data_checks import check_resolution
from region_workers.networks.costs import CostCounter, Costs
from region_workers.networks.pretrained import dense_counter
from region_workers.pruning.widths import check_ratio, realised_ratio
from schemas.errors import plan_error
from schemas.manifest import DenseSource
from schemas.plan import Plan
from schemas.regions import RegionPlan


@dataclass(frozen=True)
class RegionOutlook:
    """One region's expert: what it trains on, what it owns at sampling, and how large it will be."""

    region: RegionPlan
    route: tuple[int, int]
    steps: int
    realised_ratio: float
    costs: Costs


@dataclass(frozen=True)
class Outlook:
    """The networks of a plan. `weighted` is averaged over the timesteps that each region owns (paper, table 4)."""

    plan: Plan
    dense: Costs
    regions: tuple[RegionOutlook, ...]
    weighted: Costs

    def as_json(self) -> dict[str, Any]:
        """For `ebdiff plan --json`: parameters and multiply-accumulates of one image, as integers."""
        return {
            "name": self.plan.name,
            "dense": _as_json(self.dense),
            "regions": [
                {
                    "name": outlook.region.name,
                    "train": list(outlook.region.train),
                    "route": list(outlook.route),
                    "pruning_ratio": outlook.region.pruning_ratio,
                    "realised_ratio": round(outlook.realised_ratio, 6),
                    "steps": outlook.steps,
                    **_as_json(outlook.costs),
                }
                for outlook in self.regions
            ],
            "weighted": _as_json(self.weighted),
            "experiment": self.plan.experiment_digest(),
        }


def look_ahead(plan: Plan, dense: DenseSource | None = None) -> Outlook:
    """Build the networks without weights and count them; `dense`: the plan's dense start as its manifest has it.

    Raises PlanError for a network that cannot be built or a pruning ratio that removes nothing or a whole group.
    """
    counter = _counter(plan, dense)
    groups = counter.groups
    for index, region in enumerate(plan.regions):
        check_ratio(groups, region.pruning_ratio, f"regions.{index}.pruning_ratio")
    regions = tuple(
        RegionOutlook(
            region=region,
            route=route,
            steps=plan.steps_of(region),
            realised_ratio=realised_ratio(groups, region.pruning_ratio),
            costs=counter.at(region.pruning_ratio),
        )
        for region, route in zip(plan.regions, plan.routes(), strict=True)
    )
    return Outlook(plan, counter.dense(), regions, _weighted(plan, regions))


def _counter(plan: Plan, dense: DenseSource | None) -> CostCounter:
    check_resolution(plan)
    try:
        return dense_counter(plan.model, plan.data, dense)
    except (ValueError, TypeError, KeyError) as error:
        raise plan_error(
            "model", "the network", "arguments that diffusers' UNet accepts", f"It says: {error}"
        ) from None


def _weighted(plan: Plan, regions: tuple[RegionOutlook, ...]) -> Costs:
    total = plan.diffusion.num_train_timesteps
    spans = [outlook.route[1] - outlook.route[0] for outlook in regions]
    mean = {
        field.name: round(
            sum(span * getattr(o.costs, field.name) for span, o in zip(spans, regions, strict=True)) / total
        )
        for field in fields(Costs)
    }
    return Costs(**mean)


def _as_json(costs: Costs) -> dict[str, int]:
    return asdict(costs)
