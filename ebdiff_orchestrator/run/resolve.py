"""A plan with all that is looked up about it, once: it is handed on, and nobody looks again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ebdiff_orchestrator.plans.preview import PlanPreview, preview_plan
from ebdiff_orchestrator.run.dense_start import adopt_dense
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.storage.places import cache_dir_of
from schemas.manifest import DenseSource
from schemas.plan import Plan


@dataclass(frozen=True)
class ResolvedPlan:
    """`plan` has absolute paths, and the arguments of its dense start; `dense` is that start, if it has one."""

    plan: Plan
    dense: DenseSource | None

    @cached_property
    def preview(self) -> PlanPreview:
        """The sizes of its networks. PlanError for a network that cannot be built, or a ratio that does not fit it."""
        return preview_plan(self.plan, self.dense)

    def check_networks(self) -> None:
        """Raise what `preview` raises."""
        _ = self.preview

    @property
    def cache_dir(self) -> Path:
        """Where decoded images and latents are kept."""
        return cache_dir_of(self.plan.workers.cache_dir)


def resolve(plan: Plan, directory: RunDirectory) -> ResolvedPlan:
    """Look up what the plan names. PlanError for a dense start that cannot be had, UserError for a damaged run.

    Once every ticket is drawn, what the run recorded of that start will do.
    """
    plan = _with_absolute_paths(plan)
    known = directory.read() if directory.exists() else None
    if known is None or known.dense is None or known.plan.model.pretrained != plan.model.pretrained:
        return ResolvedPlan(*adopt_dense(plan))
    drawn = all(record.status == "done" for name, record in known.stages.items() if name.startswith("draw/"))
    if not drawn or plan.model != known.plan.model:
        return ResolvedPlan(*adopt_dense(plan))
    return ResolvedPlan(plan, known.dense)


def _with_absolute_paths(plan: Plan) -> Plan:
    """Local paths of the plan made absolute, since workers have another current directory."""
    data = plan.data.model_copy(update={"path": _absolute(plan.data.path)})
    changed = {name: _absolute(getattr(plan.model, name, None)) for name in ("pretrained", "vae")}
    model = plan.model.model_copy(update={name: path for name, path in changed.items() if path is not None})
    return plan.model_copy(update={"data": data, "model": model})


def _absolute(path: str | None) -> str | None:
    if path is None or not Path(path).expanduser().exists():
        return path
    return str(Path(path).expanduser().resolve())
