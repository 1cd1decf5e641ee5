"""What a plan will run: each network's size, and the mistakes that only the network shows. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from ebdiff_orchestrator.plans.data_checks import check_resolution
from region_workers.networks.costs import CostCounter, Costs
from region_workers.networks.pretrained import dense_counter
from region_workers.networks.sparse_costs import SparseCosts
from region_workers.networks.supported import POINTS_COUNTED
from region_workers.pruning.widths import check_ratio, realised_ratio
from schemas.errors import plan_error
from schemas.manifest import DenseSource
from schemas.plan import Plan
from schemas.regions import RegionPlan

_Sizes = TypeVar("_Sizes", Costs, SparseCosts)


@dataclass(frozen=True)
class RegionPreview:
    """One region's expert: what it trains on, what it owns at sampling, and how large it will be."""

    region: RegionPlan
    route: tuple[int, int]
    steps: int
    realised_ratio: float
    costs: Costs
    sparse: SparseCosts | None


@dataclass(frozen=True)
class PlanPreview:
    """The networks of a plan; `weighted`: averaged over the timesteps that each region owns (paper, table 4)."""

    plan: Plan
    dense: Costs
    regions: tuple[RegionPreview, ...]

    @property
    def sample(self) -> str:
        """For people: the sample whose multiply-accumulates are counted."""
        if self.plan.data.drawings is not None:
            return f"one drawing of {POINTS_COUNTED} points"
        return "one image, with the attention's products"

    @property
    def weighted(self) -> Costs:
        return self._mean(Costs, [preview.costs for preview in self.regions])

    @property
    def weighted_sparse(self) -> SparseCosts | None:
        """What the experts keep and would cost in theory, None if they are not sparse."""
        found = [preview.sparse for preview in self.regions if preview.sparse is not None]
        return self._mean(SparseCosts, found) if found else None

    def _mean(self, kind: type[_Sizes], sizes: Sequence[_Sizes]) -> _Sizes:
        owned = [preview.route[1] - preview.route[0] for preview in self.regions]
        total = self.plan.diffusion.num_train_timesteps

        def mean(name: str) -> int:
            return round(sum(n * int(getattr(size, name)) for n, size in zip(owned, sizes, strict=True)) / total)

        return kind(**{field.name: mean(field.name) for field in fields(kind)})

    def as_json(self) -> dict[str, Any]:
        """For `ebdiff plan --json`: parameters and multiply-accumulates of one image or drawing, as integers."""
        return {
            "name": self.plan.name,
            "dense": asdict(self.dense),
            "regions": [
                {
                    "name": preview.region.name,
                    "train": list(preview.region.train),
                    "route": list(preview.route),
                    "pruning_ratio": preview.region.pruning_ratio,
                    "realised_ratio": round(preview.realised_ratio, 6),
                    "steps": preview.steps,
                    **asdict(preview.costs),
                    **_sparsity(self.plan, preview),
                }
                for preview in self.regions
            ],
            "weighted": asdict(self.weighted),
            "experiment": self.plan.experiment_digest(),
        }


def preview_plan(plan: Plan, dense: DenseSource | None = None) -> PlanPreview:
    """Build the networks without weights and count them; `dense`: the plan's dense start as its manifest has it.

    Raises PlanError for a network that cannot be built or a pruning ratio that removes nothing or a whole group.
    """
    counter = _counter(plan, dense)
    groups = counter.groups
    for index, region in enumerate(plan.regions):
        check_ratio(groups, region.pruning_ratio, f"regions.{index}.pruning_ratio")
    regions = tuple(
        RegionPreview(
            region=region,
            route=route,
            steps=plan.steps_of(region),
            realised_ratio=realised_ratio(groups, region.pruning_ratio),
            costs=counter.at(region.pruning_ratio),
            sparse=counter.sparse_at(region.pruning_ratio, sparsity)
            if (sparsity := plan.sparsity_of(region))
            else None,
        )
        for region, route in zip(plan.regions, plan.routes(), strict=True)
    )
    return PlanPreview(plan, counter.dense(), regions)


def _counter(plan: Plan, dense: DenseSource | None) -> CostCounter:
    check_resolution(plan)
    try:
        return dense_counter(plan.model, plan.data, dense)
    except (ValueError, TypeError, KeyError) as error:
        raise plan_error(
            "model", "the network", "arguments that diffusers' UNet accepts", f"It says: {error}"
        ) from None


def _sparsity(plan: Plan, preview: RegionPreview) -> dict[str, Any]:
    """What a sparse region adds; its MACs say that they are theoretical."""
    sparsity, costs = plan.sparsity_of(preview.region), preview.sparse
    if sparsity is None or costs is None:
        return {}
    macs = {"theoretical_forward_macs": costs.forward_macs, "theoretical_step_macs": costs.step_macs}
    kept = {"maskable": costs.maskable, "kept": costs.kept, "kept_params": costs.kept_params}
    stored = {"stored_bytes": costs.stored_bytes}
    return {"sparse": {"method": sparsity.method, "sparsity": sparsity.sparsity, **kept, **macs, **stored}}
