"""Regions of timesteps: what one expert trains on, and the rules that a plan's regions must keep together."""

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from schemas.errors import cross_field_error
from schemas.limits import MOST_STEPS, MOST_TIMESTEPS
from schemas.section import Section, is_none

NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"  # names become folders
LONGEST_NAME = 100
# Beside the folders of the experts lie files, such as config.json and seal.json; on some file systems also Config.JSON.
_SUFFIXES_OF_FILES = (".json", ".safetensors", ".bin", ".py", ".md")

Timestep = Annotated[int, Field(le=MOST_TIMESTEPS)]


class RegionPlan(Section):
    """A half-open range of timesteps that one expert trains on, and how much of the network it gives up."""

    train: tuple[Timestep, Timestep] = Field(description="[start, stop): the timesteps that the expert trains on.")
    pruning_ratio: float = Field(
        ge=0, lt=1, description="Target share of channels to remove in every prunable layer; 0 keeps the network dense."
    )
    name: str = Field("", description="Default: start-stop.", pattern=NAME, max_length=LONGEST_NAME)
    steps: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="Training steps of this region, if not training.steps."
    )
    sparsity: float | None = Field(
        None, ge=0, lt=1, exclude_if=is_none, description="Sparsity of this region's expert, if not sparsity.sparsity."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name"):
            train = values.get("train")
            if isinstance(train, list | tuple) and len(train) == 2:
                return {**values, "name": f"{train[0]}-{train[1]}"}
        return values

    @field_validator("name")
    @classmethod
    def _no_file(cls, name: str) -> str:
        if name.lower().endswith(_SUFFIXES_OF_FILES):
            expected = f"a folder's name, without {', '.join(_SUFFIXES_OF_FILES)} at its end"
            raise cross_field_error("regions.name", name, expected, "Rename the region.")
        return name

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        start, stop = self.train
        if not 0 <= start < stop:
            expected = "0 <= start < stop"
            remedy = "Give the range as [start, stop], stop excluded."
            raise cross_field_error("regions.train", list(self.train), expected, remedy)
        return self


def check_regions(regions: tuple[RegionPlan, ...], num_train_timesteps: int) -> None:
    """Raise unless the regions, in order, cover [0, T) and only neighbours overlap."""
    if not regions:
        raise cross_field_error("regions", [], "at least one region", "Add one that trains [0, T).")
    spans = [list(region.train) for region in regions]
    names = [region.name for region in regions]
    if len({name.lower() for name in names}) != len(names):
        raise cross_field_error("regions.name", names, "different names, capitals aside", "Rename one of the regions.")
    if spans[0][0] != 0:
        raise cross_field_error("regions.0.train", spans[0], "a start of 0", "Start the first region at timestep 0.")
    if spans[-1][1] != num_train_timesteps:
        expected = f"a stop equal to diffusion.num_train_timesteps = {num_train_timesteps}"
        remedy = "Change the last region's stop or T; they are the same number."
        raise cross_field_error(f"regions.{len(spans) - 1}.train", spans[-1], expected, remedy)
    for index in range(1, len(spans)):
        _check_neighbours(spans, index)


def _check_neighbours(spans: list[list[int]], index: int) -> None:
    before, here = spans[index - 1], spans[index]
    if here[0] > before[1]:
        expected = f"a start of at most {before[1]}, since timesteps {before[1]} to {here[0] - 1} have no region"
        raise cross_field_error(f"regions.{index}.train", here, expected, "Close the hole.")
    if here[0] <= before[0] or here[1] <= before[1]:
        expected = f"a start above {before[0]} and a stop above {before[1]}"
        remedy = "Order the regions by their timesteps; none may contain another."
        raise cross_field_error(f"regions.{index}.train", here, expected, remedy)
    if index >= 2 and here[0] < spans[index - 2][1]:
        expected = f"a start of at least {spans[index - 2][1]}, since only neighbours may overlap"
        raise cross_field_error(f"regions.{index}.train", here, expected, "Shrink the overlap.")
