"""What a plan runs, or a run has run: each network's size beside its region. Nothing is trained.

Only what counts networks imports torch, which takes seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ebdiff_orchestrator.plans.data_checks import check_resolution
from schemas.errors import plan_error
from schemas.manifest import POINTS_COUNTED, Costs, DenseSource, Manifest, NetworkSizes, RegionSizes, SparseCosts
from schemas.plan import Plan
from schemas.process import quick_imports
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
    sizes: NetworkSizes

    @property
    def dense(self) -> Costs:
        return self.sizes.dense

    @property
    def regions(self) -> tuple[RegionPreview, ...]:
        plan = self.plan
        found = zip(plan.regions, plan.routes(), self.sizes.regions, strict=True)
        return tuple(
            RegionPreview(region, route, plan.steps_of(region), sizes.realised_ratio, sizes.costs, sizes.sparse)
            for region, route, sizes in found
        )

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

        return kind(**{name: mean(name) for name in kind.model_fields})

    def as_json(self) -> dict[str, Any]:
        """For `ebdiff plan --json`: parameters and multiply-accumulates of one image or drawing, as integers."""
        return {
            "name": self.plan.name,
            "dense": self.dense.model_dump(),
            "regions": [
                {
                    "name": preview.region.name,
                    "train": list(preview.region.train),
                    "route": list(preview.route),
                    "pruning_ratio": preview.region.pruning_ratio,
                    "realised_ratio": round(preview.realised_ratio, 6),
                    "steps": preview.steps,
                    **preview.costs.model_dump(),
                    **_sparsity(self.plan, preview),
                }
                for preview in self.regions
            ],
            "weighted": self.weighted.model_dump(),
            "experiment": self.plan.experiment_digest(),
        }


def preview_of(manifest: Manifest) -> PlanPreview:
    """Of a run, by the sizes that it recorded; of one begun before there was such a record they are counted."""
    sizes = manifest.sizes
    return preview_plan(manifest.plan, manifest.dense) if sizes is None else PlanPreview(manifest.plan, sizes)


def preview_plan(plan: Plan, dense: DenseSource | None = None) -> PlanPreview:
    """Of a plan, its networks built without weights; `dense`: the plan's dense start as its manifest has it.

    Raises PlanError for a network that cannot be built or a pruning ratio that removes nothing or a whole group.
    """
    with quick_imports():
        from region_workers.networks.pretrained import dense_counter
        from region_workers.pruning.mask import check_ratio, realised_ratio

    check_resolution(plan)
    try:
        counter = dense_counter(plan.model, plan.data, dense)
    except (ValueError, TypeError, KeyError) as error:
        expected, remedy = "arguments that diffusers' UNet accepts", f"It says: {error}"
        raise plan_error("model", "the network", expected, remedy) from None
    regions = []
    for index, region in enumerate(plan.regions):
        ratio, sparsity = region.pruning_ratio, plan.sparsity_of(region)
        check_ratio(counter.groups, ratio, f"regions.{index}.pruning_ratio")
        sparse = counter.sparse_at(ratio, sparsity) if sparsity else None
        realised = realised_ratio(counter.groups, ratio)
        regions.append(RegionSizes(realised_ratio=realised, costs=counter.at(ratio), sparse=sparse))
    return PlanPreview(plan, NetworkSizes(dense=counter.dense(), regions=tuple(regions)))


def width_notes(plan: Plan) -> list[str]:
    """For people: the experts of which GroupNorm hides from the output how bright and of which colour an image is."""
    from region_workers.pruning.mask import removed_channels

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


def _sparsity(plan: Plan, preview: RegionPreview) -> dict[str, Any]:
    """What a sparse region adds; its MACs say that they are theoretical."""
    sparsity, costs = plan.sparsity_of(preview.region), preview.sparse
    if sparsity is None or costs is None:
        return {}
    macs = {"theoretical_forward_macs": costs.forward_macs, "theoretical_step_macs": costs.step_macs}
    kept = {"maskable": costs.maskable, "kept": costs.kept, "kept_params": costs.kept_params}
    stored = {"stored_bytes": costs.stored_bytes}
    return {"sparse": {"method": sparsity.method, "sparsity": sparsity.sparsity, **kept, **macs, **stored}}
