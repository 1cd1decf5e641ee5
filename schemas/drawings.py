"""The section of a plan for vector drawings: how strokes become rows of points, and rows a picture."""

from typing import Literal

from pydantic import Field

from schemas.limits import LARGE
from schemas.section import Section


class RasterPlan(Section):
    """How a drawing is rendered, for people and for measures: black lines on white, filling a square.

    No source states the settings that sparse drawings were measured with: these are ours, and stand beside every value.
    """

    canvas_px: int = Field(64, ge=8, le=4096, description="Side of the picture. Ours.")
    line_width_px: float = Field(1.0, gt=0, le=256, description="Width of the lines. Ours.")
    margin: float = Field(0.05, ge=0, lt=0.5, description="Share of the canvas that stays white on each side. Ours.")


class DrawingsPlan(Section):
    """What is done to the strokes of each drawing once (ChiroDiff, arXiv 2304.03785, and its released code)."""

    coordinates: Literal["absolute", "delta"] = Field(
        "absolute",
        description="Rows hold the position of a point, or the step to it from the one before: `threeseqabs`, which "
        "the released config.yml sets, and `threeseqdel`, the released code's default.",
    )
    max_strokes: int = Field(
        25, ge=1, le=10_000, description="Strokes of a drawing that count, its first ones. The released code's."
    )
    point_spacing: float = Field(
        0.05,
        ge=1e-4,
        le=1,
        description="Distance of neighbouring points of a stroke, in units of the largest distance of a point from "
        "the drawing's first. The released code's.",
    )
    max_points: int = Field(
        300,
        ge=3,
        le=100_000,
        description="A drawing of as many points or more, at that spacing, is left out. The released code's.",
    )
    scale: float = Field(
        10.0,
        gt=0,
        le=LARGE,
        description="The largest distance of a point from the first, in rows. The released code's.",
    )
    raster: RasterPlan = RasterPlan()
