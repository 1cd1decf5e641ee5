"""The names of a run's stages, which are their folders too; without pydantic, since a command's help has a view."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.plan import Plan
    from schemas.regions import RegionPlan

SHARED_DRAW = "draw/shared"


def draw_stage_name(plan: Plan, region: RegionPlan) -> str:
    """The draw that gives the region its ticket."""
    return SHARED_DRAW if plan.draw.scope == "shared" else f"draw/{region.name}"


def train_stage_name(region: RegionPlan) -> str:
    return f"train/{region.name}"


def is_draw(stage: str) -> bool:
    return stage.startswith("draw/")


def is_training(stage: str) -> bool:
    return stage.startswith("train/")
