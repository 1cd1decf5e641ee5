"""The runs of a study, and which of them may begin now: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ebdiff_orchestrator.run.stages import Inputs, outline_jobs
from ebdiff_orchestrator.study.load import plan_of
from schemas.digest import digest
from schemas.plan import Plan
from schemas.stage_names import is_draw
from schemas.study import StudyPlan, StudyRow

StageId = tuple[str, str]


@dataclass(frozen=True)
class StudyRun:
    """A row with one seed. `name`: of its folder; `start`: the run that it starts from.

    `stages`: by name and key the steps of its trainings, 0 of its draws. Keys compare runs of this study alone.
    """

    name: str
    label: str
    plan: Plan
    start: str | None
    stages: Mapping[StageId, int]

    def takes_from(self, earlier: StudyRun) -> frozenset[str]:
        """The stages that need not be made anew where the earlier run has made them."""
        shared = [each for each, steps in earlier.stages.items() if steps <= self.stages.get(each, -1)]
        return frozenset(name for name, _ in shared)


@dataclass(frozen=True)
class Standing:
    """How the runs stand, by name. `has_room`: whether one more would find workers."""

    finished: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    at_work: frozenset[str] = frozenset()
    done_stages: Mapping[str, frozenset[str]] = field(default_factory=dict)
    has_room: bool = True


@dataclass(frozen=True)
class NextRun:
    """The run to begin now, those that never can and why; `over`: nothing is left to be done."""

    begin: str | None = None
    give_up: Mapping[str, str] = field(default_factory=dict)
    over: bool = False


def runs_of(study: StudyPlan, folder: Path) -> tuple[StudyRun, ...]:
    """The runs of a study that is written out, all rows of one seed after the other, a start before what needs it."""
    rows = sorted(study.rows, key=lambda row: _depth(row, study))
    return tuple(_run(row, seed, study, folder) for seed in study.seeds for row in rows)


def next_run(runs: Sequence[StudyRun], standing: Standing) -> NextRun:
    """The first run whose start is finished, and which no earlier one is still to make a stage for.

    A run whose start has failed never begins. A failed run is not waited for.
    """
    over = standing.finished | standing.failed
    opened = [run for run in runs if run.name not in over | standing.at_work]
    lost = {run.name: f"it starts from {run.start}, which failed" for run in opened if run.start in standing.failed}
    able = (run.name for run in opened if run.name not in lost and _may_begin(run, runs, standing))
    begin = next(able, None) if standing.has_room else None
    return NextRun(begin, lost, over=not opened and not standing.at_work)


def donors(run: StudyRun, runs: Sequence[StudyRun]) -> list[StudyRun]:
    """The earlier runs that have stages of this one."""
    return [other for other in runs[: runs.index(run)] if run.takes_from(other)]


def _may_begin(run: StudyRun, runs: Sequence[StudyRun], standing: Standing) -> bool:
    """A draw is waited for unless any run has it; a training of each run, since the longest is gone on from."""
    if run.start is not None and run.start not in standing.finished:
        return False
    drawn: set[str] = set()
    awaited: set[str] = set()
    for other in donors(run, runs):
        stages, done = run.takes_from(other), standing.done_stages.get(other.name, frozenset())
        done = stages if other.name in standing.finished else stages & done
        drawn |= {name for name in done if is_draw(name)}
        awaited |= set() if other.name in standing.failed else stages - done
    return awaited <= drawn


def _run(row: StudyRow, seed: int, study: StudyPlan, folder: Path) -> StudyRun:
    plan, name = plan_of(row), f"{row.folder}-s{seed}"
    start = next((f"{other.folder}-s{seed}" for other in study.rows if other.label == row.start), None)
    update: dict[str, object] = {"name": name, "seed": seed}
    if start is not None:
        update["model"] = plan.model.model_copy(update={"pretrained": str(folder / start)})
    plan = plan.model_copy(update=update)
    return StudyRun(name, row.label, plan, start, _stages(plan))


def _stages(plan: Plan) -> dict[StageId, int]:
    """A training is known by its draw too: without that it cannot be taken over."""
    inputs = Inputs(store=digest(plan.data.model_dump(mode="json")), dense=plan.model.pretrained)
    jobs = outline_jobs(plan, inputs)
    draws = {job.draw.name: job.draw for job in jobs if job.draw is not None}
    found: dict[StageId, int] = {(draw.name, draw.key): 0 for draw in draws.values()}
    for job in jobs:
        if job.train is not None:
            found[job.train.name, digest([job.train.key, draws[job.train.draw].key])] = job.train.steps
    return found


def _depth(row: StudyRow, study: StudyPlan) -> int:
    """How many rows must be there before it."""
    depth, start = 0, row.start
    while start is not None:
        depth += 1
        start = next(other.start for other in study.rows if other.label == start)
    return depth
