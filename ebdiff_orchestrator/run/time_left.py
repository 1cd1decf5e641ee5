"""How long the trainings of a run still take: from what its workers say, and of what has not begun from like work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ebdiff_orchestrator.placement.search import Piece, finish_times, longest_first
from schemas.stage_names import SHARED_DRAW, draw_stage_name, is_draw, is_training, train_stage_name

if TYPE_CHECKING:
    from schemas.job import Progress
    from schemas.manifest import Manifest, StageRecord
    from schemas.plan import Plan

Reports = Mapping[str, "Progress"]  # by stage, what a worker said last


class TimeLeft(NamedTuple):
    """Seconds; `at_most`: they are a bound, since a draw ends when its ticket appears, or nothing like it was timed."""

    seconds: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'≤ ' if self.at_most else ''}{duration(self.seconds)}"


def duration(seconds: float) -> str:
    """hours:minutes:seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def stage_left(progress: Progress) -> TimeLeft | None:
    """Until the last step of a stage at work (for a draw, the last that it may make); None if that is not known."""
    if not progress.total_steps or not progress.steps_per_s:
        return None
    return TimeLeft((progress.total_steps - progress.step) / progress.steps_per_s, is_draw(progress.stage))


def draw_trains(plan: Plan, draw: str) -> bool:
    """Whether a draw stage trains at all."""
    drawn = [region.pruning_ratio for region in plan.regions if draw == draw_stage_name(plan, region)]
    return plan.draw.trains_dense and any(drawn)


def ratio_of(plan: Plan, stage: str) -> float:
    """How much the network that a stage trains is pruned; a draw trains the dense one."""
    return next((region.pruning_ratio for region in plan.regions if stage == train_stage_name(region)), 0.0)


def step_times(manifest: Manifest, reports: Reports) -> Iterator[tuple[str, float]]:
    """Stages and seconds a step: of the draws and trainings made in this run, then of those at work."""
    for record in manifest.stages.values():
        if record.steps and record.active_s and record.reused_from is None:
            yield record.name, record.active_s / record.steps
    for name, report in reports.items():
        if report.steps_per_s and (is_draw(name) or is_training(name)) and manifest.stage(name).status != "done":
            yield name, 1 / report.steps_per_s


def trainings_left(manifest: Manifest, reports: Reports, draw_steps: int | None = None) -> TimeLeft | None:
    """Until the last region is trained, as fast as the stages go that are at work; None if that is not known.

    `reports`: of the stages at work. `draw_steps`: the most that a draw makes, where the plan counts in epochs.
    Steps that have not begun take what those of a network of the same pruning ratio take, else at most what those of a
    larger one do; a draw takes at most all its masks. Jobs that wait follow those at work, the longest first, on as
    many workers as are at work now. Failed attempts, the ensemble and its samples are not foreseen.
    """
    jobs = _jobs(manifest.plan)
    if not any(name in reports for job in jobs for name in job):
        return None
    pace = _Pace(manifest, reports, draw_steps)
    at_work: list[TimeLeft] = []
    waiting: list[TimeLeft] = []
    for job in jobs:
        if any(manifest.stage(name).status == "failed" for name in job):
            continue
        left = [pace.left(name) for name in job]
        if None in left:
            return None
        whole = [each for each in left if each is not None]
        total = TimeLeft(sum(each.seconds for each in whole), any(each.at_most for each in whole))
        (at_work if any(_is_begun(manifest.stage(name), reports) for name in job) else waiting).append(total)
    pieces = [Piece("", 1, each.seconds) for each in at_work]
    pieces += longest_first([Piece(str(index), 1, each.seconds) for index, each in enumerate(waiting)])
    if not pieces:
        return None  # all have failed
    ends = finish_times(pieces, max(1, len(at_work)))
    return TimeLeft(max(ends), any(each.at_most for each in (*at_work, *waiting)))


def _is_begun(record: StageRecord, reports: Reports) -> bool:
    """Whether a worker is at work on the stage, or is on its way to."""
    on_its_way = record.attempts > 0 and record.error is None
    return record.name in reports or record.status == "running" or (record.status == "pending" and on_its_way)


def _jobs(plan: Plan) -> list[tuple[str, ...]]:
    """The stages that follow one another on a worker; a shared draw is a job that all others wait for."""
    if plan.draw.scope == "shared":
        return [(SHARED_DRAW,), *((train_stage_name(region),) for region in plan.regions)]
    return [(draw_stage_name(plan, region), train_stage_name(region)) for region in plan.regions]


class _Pace:
    """Seconds a step of the networks that a run has timed, by pruning ratio, 0 for the dense one."""

    def __init__(self, manifest: Manifest, reports: Reports, draw_steps: int | None) -> None:
        self._manifest, self._reports, self._plan = manifest, reports, manifest.plan
        interval, most = manifest.plan.draw.interval_steps, manifest.plan.draw.max_intervals
        self._draw_steps = draw_steps if interval is None else interval * most
        self._steps = {train_stage_name(region): self._plan.steps_of(region) for region in self._plan.regions}
        self._seconds = dict(manifest.step_seconds or {})
        for name, seconds in step_times(manifest, reports):
            self._seconds.setdefault(ratio_of(self._plan, name), seconds)

    def left(self, stage: str) -> TimeLeft | None:
        """How long a stage still takes, begun or not; None if nothing like it was timed."""
        if self._manifest.stage(stage).status == "done":
            return TimeLeft(0.0)
        report = self._reports.get(stage)
        if report is not None and report.state == "done":
            return TimeLeft(0.0)
        if report is not None and (known := stage_left(report)) is not None:
            return known
        if is_draw(stage) and not draw_trains(self._plan, stage):
            return TimeLeft(0.0)
        steps, ratio = self._steps.get(stage, self._draw_steps), ratio_of(self._plan, stage)
        larger = {known: seconds for known, seconds in self._seconds.items() if known <= ratio}
        if steps is None or not larger:
            return None
        bound = is_draw(stage) or ratio not in larger or self._plan.placement == "balanced"
        return TimeLeft(steps * larger.get(ratio, min(larger.values())), bound)
