"""What a study has shown so far: of each row its measures, mean and deviation over seeds, and its cost; as a table."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from ebdiff_orchestrator.plans.preview import preview_of
from ebdiff_orchestrator.reports.distances import best_values, distance_notes, measured_values
from ebdiff_orchestrator.reports.formats import MISSING, TextTable
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.study.decide import StudyRun, runs_of
from ebdiff_orchestrator.study.load import load_study
from schemas.manifest import Manifest
from schemas.stage_names import train_stage_name
from schemas.study import FAILURES_FILE, StudyFailures

_MOST_LETTERS = 300  # letters of why a run failed
_EQUAL_COST = 0.05  # rows whose costs differ by less are held against each other


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
        return {"equal_cost_tolerance": _EQUAL_COST, **asdict(self)}


def study_results(folder: Path) -> StudyResults:
    """What is there by now of the study in a folder. UserError if there is none."""
    study = load_study(folder)
    failures = _failures(folder)
    runs = runs_of(study, folder)
    directories = {run.name: RunDirectory(folder / run.name) for run in runs}
    manifests = {name: directory.read() for name, directory in directories.items() if directory.exists()}
    unit = _macs_of_dense_step(next(run for run in runs if run.label == study.rows[0].label), runs, manifests)
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


def results_table(results: StudyResults, with_unfinished: bool = True) -> TextTable:
    """A row a label: mean ± standard deviation over seeds; a dash for what is not known yet.

    `with_unfinished`: the footnotes say which runs are not finished, and why.
    """
    rows = []
    for row in results.rows:
        values = [_spread(row.values.get(name), row.finished) for name in results.measures]
        costs = [_spread(row.dense_steps, row.finished), row.equal_cost, _spread(row.device_hours, row.finished)]
        rows.append((row.label, f"{row.finished}/{len(row.runs)}", *values, *costs))
    missing = unfinished(results) if with_unfinished else ()
    notes = (*_footnotes(results), *(f"{runs}: {reason}" for runs, reason, _ in missing))
    measures = results.measures
    headings = ("row", "n", *measures, "dense steps", "equal cost", "device-hours")
    return TextTable(
        headings,
        tuple(rows),
        notes,
        most_wanted=("n", *measures[:1], "dense steps", "equal cost", *measures[1:], "device-hours"),
        whole_with="--format markdown or json",
    )


def unfinished(results: StudyResults, most_letters: int = _MOST_LETTERS) -> Iterator[tuple[str, str, bool]]:
    """Runs that are not finished, why, and whether they failed: those of one reason together."""
    reasons: dict[tuple[str, bool], dict[str, list[str]]] = {}
    for row in results.rows:
        for run in row.runs:
            if not run.is_finished:
                words = " ".join(run.state.split())
                words = words[:most_letters] + "..." * (len(words) > most_letters)
                rows = reasons.setdefault((words, run.has_failed), {})
                rows.setdefault(row.label, []).append(str(run.seed))
    for (words, has_failed), rows in reasons.items():
        yield "; ".join(f"{label}, seed {', '.join(seeds)}" for label, seeds in rows.items()), words, has_failed


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
    return RowResult(
        label,
        tuple(runs),
        {name: spread for name in names if (spread := Spread.of([run.values.get(name) for run in runs]))},
        Spread.of([run.dense_steps for run in runs]),
        Spread.of([run.device_hours for run in runs]),
    )


def _with_equal_costs(rows: Sequence[RowResult]) -> tuple[RowResult, ...]:
    """With a letter for each group whose costs are within the tolerance of the group's least."""
    known = sorted((row.dense_steps.mean, row.label) for row in rows if row.dense_steps is not None)
    groups: list[list[tuple[float, str]]] = []
    for cost, label in known:
        if groups and cost <= groups[-1][0][0] * (1 + _EQUAL_COST):
            groups[-1].append((cost, label))
        else:
            groups.append([(cost, label)])
    shared = [group for group in groups if len(group) > 1]
    letters = {label: chr(ord("a") + index) for index, group in enumerate(shared) for _, label in group}
    return tuple(replace(row, equal_cost=letters.get(row.label, "")) for row in rows)


def _macs_of_dense_step(first: StudyRun, runs: Sequence[StudyRun], manifests: Mapping[str, Manifest]) -> int:
    """Multiply-accumulates of a step of the run's dense network, in which the steps of all runs are counted."""
    root = first  # what a run starts from has the same dense network, and is there before it
    while root.name not in manifests and root.start is not None:
        root = next(run for run in runs if run.name == root.start)
    if root.name in manifests:
        dense = preview_of(manifests[root.name]).dense
    else:
        from region_workers.networks.pretrained import dense_counter  # imports torch, which takes seconds

        dense = dense_counter(root.plan.model, root.plan.data).dense()
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


def _spread(spread: Spread | None, finished: int) -> str:
    if spread is None:
        return MISSING
    text = _number(spread.mean)
    if spread.deviation is not None:
        text += f" ± {spread.deviation:.2g}" if spread.deviation < 99.5 else f" ± {spread.deviation:,.0f}"
    return text if spread.n == finished else f"{text} (n={spread.n})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _footnotes(results: StudyResults) -> Iterator[str]:
    yield (
        "n: finished seeds of those asked for. ±: standard deviation over them, with n - 1. dense steps: what drawing "
        f"and training took, in steps of row {results.rows[0].label}'s dense network by multiply-accumulates. "
        "device-hours: seconds of drawing and training times workers. Both count a dense start and stages taken over."
    )
    yield f"equal cost: rows of one letter are within {_EQUAL_COST:.0%} of the cheapest of them in dense steps."
    yield from results.notes
