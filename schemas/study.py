"""A study: several plans and seeds run as one piece of work, as its user writes it."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas.errors import cross_field_error
from schemas.limits import MOST_IMAGES
from schemas.manifest import ExtractorName
from schemas.section import Place, Section, Text, is_none

FAILURES_FILE = "failures.json"
_MOST_SEEDS = 1000

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class StudyRow(Section):
    """One row of the table: a plan, run once with each seed."""

    label: Text = Field(min_length=1, max_length=100)
    plan: Place | dict[str, Any] = Field(description="A preset, a YAML file (also beside the study's), or a plan.")
    set: tuple[str, ...] = Field((), description="Changes of the plan, as in training.steps=2000.")
    start: Text | None = Field(
        None, exclude_if=is_none, description="The label of a row from whose ensemble of the same seed this one starts."
    )

    @property
    def folder(self) -> str:
        """The label as the beginning of a folder's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-") or "row"


class StudyEvaluation(Section):
    """What every finished run is measured by."""

    num_images: int = Field(1000, ge=2, le=MOST_IMAGES)
    extractors: tuple[ExtractorName, ...] = Field(("random-conv",), description="A distance each; wavelet needs none.")
    measures: tuple[Literal["fid", "kid", "precision-recall"], ...] = Field(
        ("fid",), description="Of the features of each extractor, but for wavelet, which has none."
    )
    inception_weights: Place | None = Field(None, exclude_if=is_none)


class StudyPlan(Section):
    """The whole study."""

    name: Text = Field("study", min_length=1)
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, max_length=_MOST_SEEDS, description="A number N: 0 to N-1.")
    set: tuple[str, ...] = Field((), description="Changes of every row's plan, before the row's own.")
    rows: tuple[StudyRow, ...] = Field(min_length=1)
    evaluate: StudyEvaluation | None = StudyEvaluation()

    @field_validator("seeds", mode="before")
    @classmethod
    def _number_of_seeds(cls, seeds: Any) -> Any:
        if not isinstance(seeds, int) or isinstance(seeds, bool):
            return seeds
        if seeds < 1:
            raise cross_field_error("seeds", seeds, "1 or more, or a list of seeds", "Change it in the study's file.")
        return list(range(min(seeds, _MOST_SEEDS + 1)))

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise cross_field_error("seeds", list(self.seeds), "each seed once", "Leave the repeated ones out.")
        return self

    @model_validator(mode="after")
    def _labels_are_clear(self) -> Self:
        known: dict[str, str] = {}
        for index, row in enumerate(self.rows):
            if row.folder in known:
                expected = f"a label that gives another folder than {known[row.folder]}, not {row.folder} too"
                raise cross_field_error(f"rows.{index}.label", row.label, expected, "Change one.")
            known[row.folder] = row.label
        return self

    @model_validator(mode="after")
    def _starts_are_rows(self) -> Self:
        rows = {row.label: row for row in self.rows}
        for index, row in enumerate(self.rows):
            seen, start = [row.label], row.start
            while start is not None:
                if start not in rows or start in seen:
                    expected = f"another row's label, from which no way leads back ({', '.join(rows)})"
                    raise cross_field_error(f"rows.{index}.start", row.start, expected, "Correct it, or leave it out.")
                seen.append(start)
                start = rows[start].start
        return self


class StudyFailures(Section):
    """Why runs of a study have failed, by their folders; beside the study."""

    runs: dict[str, str] = Field(default_factory=dict)
