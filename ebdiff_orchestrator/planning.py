"""What a plan will run: each network's size, and the mistakes that only the network shows. Nothing is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from region_workers.costs import CostCounter, Costs
from region_workers.pretrained import dense_counter
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


def check_data_fits(plan: Plan, images: int, world_size: int) -> None:
    """Raise PlanError if a batch cannot be made from the data set, or not be shared out evenly."""
    batch = plan.training.batch_size
    if batch > images:
        raise plan_error(
            "training.batch_size",
            batch,
            f"at most the data set's {images} images",
            f"Lower it, for example --set training.batch_size={images}.",
        )
    share = world_size * plan.training.gradient_accumulation
    if batch % share:
        raise plan_error(
            "training.batch_size",
            batch,
            f"a multiple of {share} (workers a region times training.gradient_accumulation)",
            "Change the batch size or the number of GPUs a region.",
        )


def _counter(plan: Plan, dense: DenseSource | None) -> CostCounter:
    halvings = len(plan.model.block_out_channels) - 1
    smallest = 2**halvings * (plan.model.latent_downscale if plan.model.family == "latent" else 1)
    if plan.data.resolution % smallest:
        raise plan_error(
            "data.resolution",
            plan.data.resolution,
            f"a multiple of {smallest}, since the network halves it {halvings} times",
            "Change the resolution or the number of model.block_out_channels.",
        )
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
