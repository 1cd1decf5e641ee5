"""How far a study is: the state of each of its runs, and about how long is left; pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ebdiff_orchestrator.run.time_left import draw_trains, duration, ratio_of, step_times
from ebdiff_orchestrator.study.decide import StageId, Standing, StudyRun
from schemas.digest import digest
from schemas.job import Progress
from schemas.manifest import Manifest
from schemas.stage_names import is_draw

DONE, FAILED, WAITS = "done", "failed", "waits"


@dataclass
class Seen:
    """What is known of a run by now: its manifest, and what its workers said last, by stage."""

    manifest: Manifest | None = None
    reports: dict[str, Progress] = field(default_factory=dict)

    def made(self, stage: str) -> int | None:
        """The steps of a stage that is done, None if it is not."""
        record = self.manifest.stages.get(stage) if self.manifest is not None else None
        return record.steps if record is not None and record.status == "done" else None

    def steps(self, stage: str) -> int:
        """How far a stage is."""
        made, report = self.made(stage), self.reports.get(stage)
        return made if made is not None else report.step if report is not None else 0


@dataclass(frozen=True)
class Board:
    """`rows`: by label, the state of each seed's run. `left_s`: for all of them, None if nothing tells it yet."""

    name: str
    seeds: tuple[int, ...]
    rows: Mapping[str, tuple[str, ...]]
    left_s: float | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many runs are in which state; those under way together."""
        return counts_of([state for states in self.rows.values() for state in states])

    def __str__(self) -> str:
        counts = self.counts
        said = [f"{counts[DONE]} of {sum(counts.values())} done"]
        said += [f"{count} {state}" for state, count in counts.items() if count and state != DONE]
        said += [] if self.left_s is None else [f"about {duration(self.left_s)} left"]
        return f"study {self.name}: {', '.join(said)}"


def counts_of(states: Sequence[str]) -> dict[str, int]:
    """How many of these are done, at work, waiting and failed."""
    ends = {state: states.count(state) for state in (DONE, WAITS, FAILED)}
    return {DONE: ends[DONE], "at work": len(states) - sum(ends.values()), "waiting": ends[WAITS], FAILED: ends[FAILED]}


def board_of(
    name: str, runs: Sequence[StudyRun], standing: Standing, seen: Mapping[str, Seen], workers: int, measures: bool
) -> Board:
    """The board of a study whose jobs run so many at once, and whose runs are measured at their end, or not."""
    rows: dict[str, dict[int, str]] = {}
    for run in runs:
        rows.setdefault(run.label, {})[run.plan.seed] = _state(run, standing, seen[run.name])
    seeds = tuple(dict.fromkeys(run.plan.seed for run in runs))
    states = {label: tuple(by_seed[seed] for seed in seeds) for label, by_seed in rows.items()}
    return Board(name, seeds, states, _left_s(runs, standing, seen, workers, measures))


def _state(run: StudyRun, standing: Standing, seen: Seen) -> str:
    if run.name in standing.failed:
        return FAILED
    if run.name in standing.finished:
        return "measures" if run.name in standing.at_work else DONE
    if seen.manifest and seen.manifest.finished():  # before this command, which looks at its files again
        return DONE
    if run.name not in standing.at_work:
        return WAITS
    steps = {stage: count for (stage, _), count in run.stages.items() if not is_draw(stage)}
    done = sum(min(seen.steps(stage), count) for stage, count in steps.items())
    if done:
        return f"{100 * done // sum(steps.values())}%" if done < sum(steps.values()) else "samples"
    return "draws" if any(report.step for report in seen.reports.values()) else "starts"


def _left_s(
    runs: Sequence[StudyRun], standing: Standing, seen: Mapping[str, Seen], workers: int, measures: bool
) -> float | None:
    """Each stage once, as its network has taken so far, and measuring; ensembles and samples are not foreseen.

    Equal stages are made once for all runs; a training goes on from an equal shorter one.
    """
    pace = _Pace(runs, seen)
    if not pace.seconds:
        return None
    opened = [run for run in runs if run.name not in standing.failed]
    owners: dict[StageId, list[StudyRun]] = {}  # also of a run that has failed stages are taken over
    for run in runs:
        for stage in run.stages:
            owners.setdefault(stage, []).append(run)
    work = 0.0
    for stage, sharing in owners.items():
        if wanted := [run.stages[stage] for run in sharing if run.name not in standing.failed]:
            work += _stage_left_s(stage, max(wanted), sharing, seen, pace)
    took = [_measuring_s(each.manifest) for each in seen.values() if each.manifest and each.manifest.evaluations]
    if measures and took:
        finished = standing.finished - standing.at_work
        unmeasured = [r for r in opened if r.name not in finished and not _measuring_s(seen[r.name].manifest)]
        work += statistics.fmean(took) * len(unmeasured)
    return work / max(1, workers)


def _stage_left_s(
    stage: StageId, steps: int, owners: Sequence[StudyRun], seen: Mapping[str, Seen], pace: _Pace
) -> float:
    """`steps`: of a training, the most that a run wants."""
    name, _ = stage
    if is_draw(name):
        if any(seen[run.name].made(name) is not None for run in owners) or not draw_trains(owners[0].plan, name):
            return 0.0
        steps = pace.draw_steps(owners[0])
    left = steps - max(seen[run.name].steps(name) for run in owners)
    return max(0, left) * pace.of(owners[0], name)


def _measuring_s(manifest: Manifest | None) -> float:
    """Of one worker: sampling, which is most of it; by the clock it also waited for workers that trained."""
    evaluations = manifest.evaluations.values() if manifest is not None else ()
    return sum(each.seconds_per_image * each.num_images for each in evaluations)


class _Pace:
    """Seconds a step of the networks that the study has timed, and steps of its draws."""

    def __init__(self, runs: Sequence[StudyRun], seen: Mapping[str, Seen]) -> None:
        self._names: dict[str, str] = {}  # of networks, by row: seeds do not matter
        self._drawn: list[int] = []
        self._most: dict[str, int] = {}
        found: dict[tuple[str, float], list[float]] = {}
        for run in runs:
            self._note_draws(run, seen[run.name])
            manifest, reports = seen[run.name].manifest, seen[run.name].reports
            for stage, seconds in step_times(manifest, reports) if manifest is not None else ():
                found.setdefault((self._network(run), ratio_of(run.plan, stage)), []).append(seconds)
        self.seconds = {network: statistics.median(times) for network, times in found.items()}  # one may just begin

    def of(self, run: StudyRun, stage: str) -> float:
        """Of an equal network; else of the one that is pruned the most of those pruned less; else of any."""
        network, ratio = self._network(run), ratio_of(run.plan, stage)
        own = {known: seconds for (name, known), seconds in self.seconds.items() if name == network}
        larger = [known for known in own if known <= ratio]
        return own[max(larger)] if larger else statistics.fmean((own or self.seconds).values())

    def draw_steps(self, run: StudyRun) -> int:
        """What draws took so far, on average; before any has ended, the most that this one may."""
        if self._drawn:
            return round(statistics.fmean(self._drawn))
        return self._most.get(run.label, 0)

    def _note_draws(self, run: StudyRun, seen: Seen) -> None:
        draw = run.plan.draw
        if draw.interval_steps is not None:
            self._most[run.label] = draw.interval_steps * draw.max_intervals
        for name, report in seen.reports.items():
            if is_draw(name) and report.total_steps:
                self._most[run.label] = report.total_steps
        records = seen.manifest.draws() if seen.manifest is not None else []
        self._drawn += [
            each.steps for each in records if each.status == "done" and each.reused_from is None and each.steps
        ]

    def _network(self, run: StudyRun) -> str:
        if run.label not in self._names:
            model = run.plan.model.model_dump(mode="json", exclude={"pretrained"})
            self._names[run.label] = digest([model, run.plan.data.resolution, run.plan.training.batch_size])
        return self._names[run.label]
