"""The measured distances of runs: a column for each measure, since values of two measures cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ebdiff_orchestrator.evaluation.records import (
    COMPARES_RUNS,
    distance_text,
    ensemble_digest,
    measure_name,
    thousands,
)
from ebdiff_orchestrator.reports.formats import MISSING
from schemas.manifest import Evaluation, ExtractorName, Manifest


class Measure(NamedTuple):
    """What values must share to stand in one column."""

    name: str
    weights_sha256: str


Evaluations = Mapping[Measure, Evaluation]


def best_evaluations(manifest: Manifest) -> dict[Measure, Evaluation]:
    """By measure: the evaluation of the run's ensemble as it is now with most images; of those the newest."""
    current = ensemble_digest(manifest)
    own = [found for found in manifest.evaluations.values() if found.ensemble_digest == current]
    own.sort(key=_rank)
    return {Measure(measure_name(found), found.weights_sha256): found for found in own}


def distance_cells(runs: Sequence[Evaluations]) -> list[dict[str, str]]:
    """For each run its cells by heading, the FID first; a column of dashes where nothing was measured at all."""
    measures = sorted(
        {measure for found in runs for measure in found}, key=lambda measure: (measure.name != "FID", measure)
    )
    if not measures:
        return [{"FID": MISSING} for _ in runs]
    names = [measure.name for measure in measures]
    headings = {
        measure: measure.name if names.count(measure.name) == 1 else f"{measure.name} [{measure.weights_sha256[:8]}]"
        for measure in measures
    }
    return [{heading: _cell(found.get(measure)) for measure, heading in headings.items()} for found in runs]


def distance_notes(runs: Sequence[Evaluations]) -> list[str]:
    """The footnotes that the columns need."""
    by_measure: dict[Measure, list[Evaluation]] = {}
    for found in runs:
        for measure, evaluation in found.items():
            by_measure.setdefault(measure, []).append(evaluation)
    notes = []
    if any(not each.is_full for all_of in by_measure.values() for each in all_of if each.extractor == "inception"):
        notes.append("FID (n): from n images; fewer than 50,000 give a higher number, not to be compared with FID-50K.")
    names = sorted({measure.name for measure in by_measure})
    for name in names:
        if not name.startswith("FID"):
            notes.append(f"{name} (n): from n images, to be compared at equal n. It is no FID: it {COMPARES_RUNS}.")
    if len(names) < len(by_measure):
        notes.append("In brackets after a measure: the SHA-256 of the weights of its network.")
    for measure, all_of in by_measure.items():
        if len({each.reference_digest for each in all_of}) > 1:
            values = "FIDs" if measure.name == "FID" else f"values of {measure.name}"
            notes.append(f"The {values} are measured against different reference images.")
    return notes


def distance_fields(found: Evaluations, extractor: ExtractorName, name: str) -> dict[str, Any]:
    """Plain values of the extractor's best evaluation, their names led by `name`; None without one."""
    best = max((each for each in found.values() if each.extractor == extractor), key=_rank, default=None)
    return {
        name: best and best.distance,
        f"{name}_images": best and best.num_images,
        f"{name}_sampling_steps": best and best.steps,
        f"{name}_measure": best and measure_name(best),
    }


def _rank(evaluation: Evaluation) -> tuple[int, float]:
    return evaluation.num_images, evaluation.at


def _cell(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return MISSING
    few = "" if evaluation.is_full else f" ({thousands(evaluation.num_images)})"
    return distance_text(evaluation, 2) + few
