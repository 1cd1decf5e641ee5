"""The measured values of runs: a column for each measure, since values of two measures cannot be compared."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ebdiff_orchestrator.evaluation.values import COMPARES_RUNS, FULL_IMAGES, MeasuredValue, thousands, values_of
from ebdiff_orchestrator.reports.formats import MISSING
from ebdiff_orchestrator.run.stages import ensemble_digest
from schemas.manifest import Manifest


class Column(NamedTuple):
    """What values must share to stand in one column."""

    name: str
    weights_sha256: str


Values = Mapping[Column, MeasuredValue]


def measured_values(manifest: Manifest) -> tuple[MeasuredValue, ...]:
    """For each measure the value with most images, of equals the newest, of the ensemble as it is now; FID first."""
    found = best_values(manifest)
    return tuple(found[measure] for measure in sorted(found, key=_order))


def best_values(manifest: Manifest) -> dict[Column, MeasuredValue]:
    """The values of `measured_values`, by column."""
    current = ensemble_digest(manifest)
    own = [found for found in manifest.evaluations.values() if found.ensemble_digest == current]
    values = sorted((value for evaluation in own for value in values_of(evaluation)), key=_rank)
    return {Column(value.name, value.evaluation.weights_sha256): value for value in values}


def distance_cells(runs: Sequence[Values]) -> list[dict[str, str]]:
    """For each run its cells by heading, the FID first; a column of dashes where nothing was measured at all."""
    measures = sorted({measure for found in runs for measure in found}, key=_order)
    if not measures:
        return [{"FID": MISSING} for _ in runs]
    names = [measure.name for measure in measures]
    headings = {
        measure: measure.name if names.count(measure.name) == 1 else f"{measure.name} [{measure.weights_sha256[:8]}]"
        for measure in measures
    }
    return [{heading: _cell(found.get(measure)) for measure, heading in headings.items()} for found in runs]


def distance_notes(runs: Sequence[Values]) -> list[str]:
    by_measure: dict[Column, list[MeasuredValue]] = {}
    for found in runs:
        for measure, value in found.items():
            by_measure.setdefault(measure, []).append(value)
    notes = []
    if any(not each.evaluation.is_full for all_of in by_measure.values() for each in all_of if each.short == "FID"):
        notes.append("FID (n): from n images; fewer than 50,000 give a higher number, not to be compared with FID-50K.")
    names = {measure.name: all_of[0] for measure, all_of in by_measure.items()}
    for name, value in sorted(names.items()):
        if value.short != "FID":
            notes.append(_note(name, value))
    if len(names) < len(by_measure):
        notes.append("In brackets after a measure: the SHA-256 of the weights of its network.")
    for measure, all_of in by_measure.items():
        if len({each.evaluation.reference_digest for each in all_of}) > 1:
            values = "FIDs" if measure.name == "FID" else f"values of {measure.name}"
            notes.append(f"The {values} are measured against different reference images.")
    return notes


def _note(name: str, value: MeasuredValue) -> str:
    higher = " Higher is better." if value.higher_is_better else ""
    if value.comparable_note == COMPARES_RUNS:
        return f"{name} (n): from n images, to be compared at equal n. It is no FID: it {COMPARES_RUNS}.{higher}"
    return f"{name} (n): from n images; {value.comparable_note}. It is no FID.{higher}"


def distance_fields(found: Values, short: str, name: str) -> dict[str, Any]:
    """The best value called `short` as JSON fields whose names begin with `name`; None where there is none."""
    best = max((each for each in found.values() if each.short == short), key=_rank, default=None)
    return {
        name: best and best.value,
        f"{name}_images": best and best.num_images,
        f"{name}_sampling_steps": best and best.evaluation.steps,
        f"{name}_measure": best and best.name,
    }


def measured_fields(found: Values) -> list[dict[str, Any]]:
    return [
        {
            "label": value.label,
            "value": value.value,
            "deviation": value.deviation,
            "images": value.num_images,
            "higher_is_better": value.higher_is_better,
            "reference_images": value.evaluation.reference_images,
            "sampling_steps": value.evaluation.steps,
        }
        for _, value in sorted(found.items(), key=lambda item: _order(item[0]))
    ]


def _order(measure: Column) -> tuple[bool, Column]:
    return measure.name != "FID", measure


def _rank(value: MeasuredValue) -> tuple[int, float]:
    return value.num_images, value.evaluation.at


def _cell(value: MeasuredValue | None) -> str:
    if value is None:
        return MISSING
    few = "" if value.num_images >= FULL_IMAGES else f" ({thousands(value.num_images)})"
    return value.text(2) + few
