"""Previews of a run that still trains: what the plan asks for, and what is recorded of each."""

from typing import Literal

from pydantic import Field

from schemas.limits import MOST_TIMESTEPS
from schemas.section import Section, is_none

PREVIEWS_FOLDER = "previews"  # in the run directory

Source = Literal["dense", "expert"]


class PreviewsPlan(Section):
    """A few images while the run trains, always from the same noise; changes nothing in the result.

    They are drawn from the EMA weights of each region's newest checkpoint, as soon as every region has one: its expert,
    or the dense network while it still draws its ticket (the raw weights, unless draw.weights is ema).
    """

    interval_s: float = Field(
        1800,
        gt=0,
        le=10**8,
        description="Least seconds between two previews, and before the first. A preview also waits until all of them "
        "together, if it costs what the last one did, take at most 0.5% of the processor time so far: of the seconds "
        "since the launch times the cores that the driver may use.",
    )
    num_images: int = Field(16, ge=1, le=256)
    steps: int = Field(20, ge=1, le=MOST_TIMESTEPS, description="Sampling steps; the rest is as in `sampling`.")
    measure: Literal["wavelet"] | None = Field(
        None,
        exclude_if=is_none,
        description="wavelet: the Frechet wavelet distance of the preview's images from as many of the data, evenly "
        "spread. Of so few images it compares the previews of a run with each other, and nothing else; null: none.",
    )


class PreviewRecord(Section):
    """One preview, beside its picture; `steps`: those of each region's checkpoint, by the region's name."""

    number: int
    unix_s: float
    steps: dict[str, int]
    source: dict[str, Source] = Field(description="Whose steps they are: the region's, or its dense network's.")
    num_images: int
    sampling_steps: int
    seconds: float
    processor_s: float = Field(description="Processor time of the whole process that drew it.")
    measures: dict[str, float] = Field(default_factory=dict, description="By name; of few images.")


def picture_key(number: int) -> str:
    return f"{PREVIEWS_FOLDER}/{number:06d}.png"


def record_key(number: int) -> str:
    """A preview's record in the run directory; written last."""
    return f"{PREVIEWS_FOLDER}/{number:06d}.json"
