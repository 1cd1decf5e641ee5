"""What a study has shown so far: of each row the mean and deviation over seeds of its measures, and what it cost."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from ebdiff_orchestrator.plans.preview import preview_of
from ebdiff_orchestrator.reports.distances import best_values, distance_notes, measured_values
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.study.decide import StudyRun, runs_of
from ebdiff_orchestrator.study.load import load_study
from schemas.manifest import Manifest
from schemas.stage_names import train_stage_name
from schemas.study import FAILURES_FILE, StudyFailures

EQUAL_COST = 0.05  # rows whose costs differ by less are held against each other


@dataclass(frozen=True)
class RunResult:
    """One run. `values`: by measure; `dense_steps` and `device_hours`: see `RowResult`; None, and none: not known yet.

    `state`: finished, or why not; `has_failed`: it is why the run failed.
    """

    name: str
    seed: int
    state: str
    values: Mapping[str, float]
    dense_steps: float | None = None
    device_hours: float | None = None
    has_failed: bool = False

    @property
    def is_finished(self) -> bool:
        return self.state == "finished"


@dataclass(frozen=True)
class Spread:
    """The mean over `n` seeds, and their standard deviation (over n - 1), None for one."""

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Self | None:
        """None if nothing is known."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class RowResult:
    """One row. Both costs are of drawing and training, the dense start's included.

    `dense_steps`: as steps of the first row's dense network, by multiply-accumulates. `device_hours`: seconds of work
    times workers; what was taken over from another run counts with what it took there. `equal_cost`: a letter that
    rows of equal cost share.
    """

    label: str
    runs: tuple[RunResult, ...]
    values: Mapping[str, Spread]
    dense_steps: Spread | None
    device_hours: Spread | None
    equal_cost: str = ""

    @property
    def finished(self) -> int:
        return sum(run.is_finished for run in self.runs)


@dataclass(frozen=True)
class StudyResults:
    """All rows, in the study's order; `measures`: of any of them; `notes`: what their names mean."""

    name: str
    rows: tuple[RowResult, ...]
    measures: tuple[str, ...]
    higher_is_better: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"equal_cost_tolerance": EQUAL_COST, **asdict(self)}


def study_results(folder: Path) -> StudyResults:
    """What is there by now of the study in a folder. UserError if there is none."""
    study = load_study(folder)
    failures = _failures(folder)
    runs, manifests = runs_of(study, folder), {}
    for run in runs:
        directory = RunDirectory(folder / run.name)
        if directory.exists():
            manifests[run.name] = directory.read()
    unit = _macs_of_dense_step(runs[0], manifests.get(runs[0].name))
    found = [_result(run, manifests.get(run.name), failures.get(run.name), unit) for run in runs]
    by_label = {
        row.label: [r for run, r in zip(runs, found, strict=True) if run.label == row.label] for row in study.rows
    }
    rows = [_row(label, results) for label, results in by_label.items()]
    names = {name for row in rows for name in row.values}
    measures = sorted(names, key=lambda name: (not name.startswith("FID"), name))
    known = [best_values(manifest) for manifest in manifests.values()]
    higher = {value.label for values in known for value in values.values() if value.higher_is_better}
    return StudyResults(
        study.name, _with_equal_costs(rows), tuple(measures), tuple(sorted(higher)), tuple(distance_notes(known))
    )


def _failures(folder: Path) -> Mapping[str, str]:
    file = folder / FAILURES_FILE
    return StudyFailures.model_validate_json(file.read_bytes()).runs if file.is_file() else {}


def _result(run: StudyRun, manifest: Manifest | None, failure: str | None, unit: int) -> RunResult:
    if manifest is None:
        return RunResult(run.name, run.plan.seed, failure or "not begun", {}, has_failed=failure is not None)
    return RunResult(
        run.name,
        run.plan.seed,
        failure or ("finished" if manifest.finished() else "not finished"),
        {found.label: found.value for found in measured_values(manifest)},
        _dense_steps(manifest, unit) if manifest.finished() else None,
        _device_hours(manifest) if manifest.finished() else None,
        failure is not None,
    )


def _row(label: str, runs: Sequence[RunResult]) -> RowResult:
    names = dict.fromkeys(name for run in runs for name in run.values)
    values = {name: Spread.of([run.values.get(name) for run in runs]) for name in names}
    return RowResult(
        label,
        tuple(runs),
        {name: spread for name, spread in values.items() if spread is not None},
        Spread.of([run.dense_steps for run in runs]),
        Spread.of([run.device_hours for run in runs]),
    )


def _with_equal_costs(rows: Sequence[RowResult]) -> tuple[RowResult, ...]:
    """With a letter for each group whose costs are within the tolerance of the group's least."""
    known = sorted((row.dense_steps.mean, row.label) for row in rows if row.dense_steps is not None)
    groups: list[list[tuple[float, str]]] = []
    for cost, label in known:
        if groups and cost <= groups[-1][0][0] * (1 + EQUAL_COST):
            groups[-1].append((cost, label))
        else:
            groups.append([(cost, label)])
    shared = [group for group in groups if len(group) > 1]
    letters = {label: chr(ord("a") + index) for index, group in enumerate(shared) for _, label in group}
    return tuple(replace(row, equal_cost=letters.get(row.label, "")) for row in rows)


def _macs_of_dense_step(first: StudyRun, manifest: Manifest | None) -> int:
    """Multiply-accumulates of a step of the first run's dense network, in which the steps of all runs are counted."""
    if manifest is not None:
        dense = preview_of(manifest).dense
    else:
        from region_workers.networks.pretrained import dense_counter  # imports torch, which takes seconds

        dense = dense_counter(first.plan.model, first.plan.data).dense()
    return dense.macs * first.plan.training.batch_size


def _dense_steps(manifest: Manifest, unit: int) -> float | None:
    """Of a finished run: its trainings, its draws, and the training of its dense start, None if that is unknown."""
    sizes, start = preview_of(manifest), manifest.start_cost()
    if start is None:
        return None
    macs = sum(manifest.stage(train_stage_name(each.region)).steps * each.costs.macs for each in sizes.regions)
    dense = start.steps + sum(record.steps for record in manifest.draws())
    return (macs + dense * sizes.dense.macs) * manifest.plan.training.batch_size / unit


def _device_hours(manifest: Manifest) -> float | None:
    start = manifest.start_cost()
    if start is None:
        return None
    records = [*manifest.draws(), *manifest.trainings()]
    own = sum(each.active_s * (each.hardware.world_size if each.hardware else 1) for each in records)
    return (start.active_s + own) / 3600
