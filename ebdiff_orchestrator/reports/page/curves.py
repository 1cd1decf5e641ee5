"""The figures of a run: losses, distances and moves of masks, its workers' time; of several, quality against hours."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ebdiff_orchestrator.reports.formats import evenly_chosen
from ebdiff_orchestrator.reports.mask_moves import RecordedMoves
from ebdiff_orchestrator.reports.page.svg import COLOURS, INK, figure, label_of
from ebdiff_orchestrator.reports.tickets import TicketReport
from schemas.manifest import Manifest
from schemas.stage_names import SHARED_DRAW, draw_stage_name, is_draw, is_training, train_stage_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = npt.NDArray[np.float64]
Kind = Literal["held", "draw", "train", "other"]
_MOST_POINTS = 400  # of a curve; more are no wider than a pixel
_MOST_MASKS = 120  # a side of a heat map
_MOST_TICKS = 8
_LABEL_LETTERS = 44  # of a line of a legend
_MARKERS = "os^Dv"  # with the colours, so that many runs can be told apart
_GAP = 0.01  # of a whole timeline, between two launches
_UNITS = (  # with their seconds, and from how many on they are taken
    ("hours since the start", 3600.0, 2 * 3600.0),
    ("minutes since the start", 60.0, 120.0),
    ("seconds since the start", 1.0, 0.0),
)
_WORK_COLOURS = {"draw": COLOURS[4], "train": COLOURS[0], "other": COLOURS[2], "held": "#9e9e9e"}


class Curve(NamedTuple):
    """Values over steps."""

    label: str
    steps: Numbers
    values: Numbers


class Point(NamedTuple):
    """A run's quality and what it took; of several runs the means, with their deviations as error bars."""

    label: str
    cost: float
    value: float
    cost_deviation: float | None = None
    value_deviation: float | None = None


class Quality(NamedTuple):
    """A measure of runs against a cost, such as device-hours; a place that is None keeps its looks free."""

    measure: str
    higher_is_better: bool
    cost: str
    points: Sequence[Point | None]

    @property
    def inches(self) -> tuple[float, float]:
        """The width and height of its figure: as high as its legend."""
        lines = sum(_in_legend(point.label).count("\n") + 1 for point in self.points if point is not None)
        return 7.0, max(3.0, 0.4 + 0.21 * lines)


class Bar(NamedTuple):
    """What a job did from `start` to `stop`, in the timeline's unit."""

    job: str
    kind: Kind
    start: float
    stop: float


class Timeline(NamedTuple):
    """Bars of jobs, in the order in which they began. `gaps`: where launches meet."""

    jobs: Sequence[str]
    bars: Sequence[Bar]
    gaps: Sequence[float]
    unit: str


def curves_figure(curves: Sequence[Curve], ylabel: str, numbers: itertools.count[int]) -> str:
    """Curves over the step, on a logarithmic scale where that is needed to see them all."""

    def draw(axes: Axes) -> None:
        for colour, curve in zip(itertools.cycle(COLOURS), curves, strict=False):
            steps, values = _thinned(curve)
            marker = "o" if len(steps) == 1 else None
            axes.plot(steps, values, color=colour, label=label_of(curve.label), marker=marker, ms=5)
        shown = np.concatenate([curve.values for curve in curves])
        shown = shown[np.isfinite(shown)]
        if len(shown) and shown.min() > 0 and shown.max() / shown.min() > 10:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter("")
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    return figure(draw, numbers)


def distances_figure(report: TicketReport, numbers: itertools.count[int]) -> str:
    return figure(lambda axes: draw_distances(axes, report), numbers, 3.5, 2.9)


def draw_distances(axes: Axes, report: TicketReport, last: int | None = None) -> None:
    """The distances between the last so many masks of a draw, of all for None, and where its ticket was drawn.

    The paper's figures 2 and 4.
    """
    intervals, distances = report.newest(last)
    chosen = evenly_chosen(len(intervals), _MOST_MASKS)
    shares = distances[np.ix_(chosen, chosen)]
    shown = axes.imshow(shares, cmap="magma_r", vmin=0, origin="lower", interpolation="nearest")
    places = range(0, len(chosen), -(-len(chosen) // _MOST_TICKS))
    names = [str(intervals[chosen[place]]) for place in places]
    axes.set_xticks(places, names)
    axes.set_yticks(places, names)
    axes.set_xlabel("interval")
    axes.set_ylabel("interval")
    axes.grid(visible=False)
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.9)
    bar.outline.set_visible(False)
    ticket = report.masks.ticket
    if ticket is not None and ticket.interval >= intervals[0]:
        drawn = int(np.searchsorted([intervals[place] for place in chosen], ticket.interval))
        axes.plot([drawn], [drawn], "o", ms=9, mfc="none", mec=COLOURS[0], mew=2)
    axes.set_title(f"{label_of(report.masks.region)}: share of bits that differ", fontsize=9)


def moves_figure(moves: RecordedMoves, numbers: itertools.count[int]) -> str:
    return figure(lambda axes: draw_moves(axes, moves), numbers)


def draw_moves(axes: Axes, moves: RecordedMoves) -> None:
    """How a sparse region's masks of weights have moved."""
    names = {"ever_kept": "ever kept", "replaced": "replaced since the first", "exchanged": "exchanged in an update"}
    for colour, (key, label) in zip(COLOURS, names.items(), strict=False):
        axes.plot(moves.steps, 100 * moves.over_time()[key], color=colour, label=label, marker=".")
    axes.axhline(100 * moves.replaced_by_chance(), color=COLOURS[1], ls="--", lw=1, label="replaced by chance")
    axes.set_xlabel("step")
    axes.set_title(f"{label_of(moves.region)}: {moves.plan.method}, {moves.plan.sparsity:.0%} masked", fontsize=9)
    _percents_with_legend(axes)


def draw_layers(axes: Axes, moves: RecordedMoves) -> None:
    """How dense a sparse region's layers are, and what they kept earlier."""
    from matplotlib.ticker import MaxNLocator

    shares, layers = moves.by_layer(), np.arange(len(moves.layers)) + 1
    axes.bar(layers, 100 * shares["ever_kept"], color=COLOURS[2], alpha=0.35, label="kept earlier")
    axes.bar(layers, 100 * shares["density"], color=COLOURS[2], label="kept")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("masked layer, from the first to the last")
    _percents_with_legend(axes)


def timeline_of(manifest: Manifest) -> Timeline | None:
    """When each job of a run held its devices and what it did; None while nothing has held any."""
    held = [Bar(usage.job, "held", usage.started_at, usage.ended_at) for usage in manifest.usage]
    if not held:
        return None
    plan = manifest.plan
    job_of = {train_stage_name(region): f"region {region.name}" for region in plan.regions}
    job_of |= {draw_stage_name(plan, region): f"region {region.name}" for region in plan.regions}
    job_of |= {SHARED_DRAW: "shared draw"}
    did = []
    for name, record in manifest.stages.items():
        job = job_of.get(name, name)
        kind: Kind = "draw" if is_draw(name) else "train" if is_training(name) else "other"
        if record.started_at is not None and not record.reused_from:
            did += [Bar(job, kind, *span) for span in _within(record.started_at, record.finished_at, job, held)]
    did += [Bar(bar.job, "other", bar.start, bar.stop) for bar in held if bar.job == "evaluate"]
    spans = _merged(
        [(bar.start, bar.stop) for bar in held] + [(one.started_at, one.ended_at) for one in manifest.launches]
    )
    total = sum(stop - start for start, stop in spans)
    unit, seconds = next((unit, each) for unit, each, least in _UNITS if total >= least)

    def place(moment: float) -> float:
        return _place(moment, spans, total) / seconds

    jobs = tuple(dict.fromkeys(bar.job for bar in sorted(held, key=lambda bar: bar.start)))
    bars = [Bar(bar.job, bar.kind, place(bar.start), place(bar.stop)) for bar in (*held, *did) if bar.job in jobs]
    gaps = [place(start) - _GAP * total / 2 / seconds for start, _ in spans[1:]]
    return Timeline(jobs, bars, gaps, unit)


def timeline_figure(timeline: Timeline, numbers: itertools.count[int]) -> str:
    """Which job held devices when, and what it did; the time between launches is left out."""

    def draw(axes: Axes) -> None:
        rows = {name: place for place, name in enumerate(timeline.jobs)}
        for bar in timeline.bars:
            height, alpha = (0.8, 0.35) if bar.kind == "held" else (0.45, 1.0)
            colour, took = _WORK_COLOURS[bar.kind], bar.stop - bar.start
            axes.barh(rows[bar.job], took, height, bar.start, color=colour, alpha=alpha)
        for gap in timeline.gaps:
            axes.axvline(gap, color=INK, ls=":", lw=1)
        axes.set_yticks(list(rows.values()), list(map(label_of, rows)))
        axes.set_xlim(left=0)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(timeline.unit)

    return figure(draw, numbers, height=0.8 + 0.32 * len(timeline.jobs))


def quality_figure(quality: Quality, numbers: itertools.count[int]) -> str:
    return figure(lambda axes: draw_quality(axes, quality), numbers, *quality.inches)


def draw_quality(axes: Axes, quality: Quality) -> None:
    """Quality against what it took (the paper's figure 1), with error bars."""
    looks = itertools.cycle(itertools.product(_MARKERS, COLOURS))
    for (marker, colour), point in zip(looks, quality.points, strict=False):
        if point is not None:
            place, bars = ([point.cost], [point.value]), (point.value_deviation, point.cost_deviation)
            axes.errorbar(*place, *bars, "none", ecolor=colour, capsize=3)
            axes.plot(*place, marker, color=colour, ms=7, label=_in_legend(point.label))
    axes.set_xlabel(quality.cost)
    better = "higher" if quality.higher_is_better else "lower"
    axes.set_ylabel(textwrap.fill(f"{quality.measure} ({better} is better)", 34))
    axes.margins(0.15)
    axes.set_xlim(left=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def legend_of_work() -> Mapping[str, str]:
    """What the colours of a timeline mean."""
    words = {"draw": "draws its ticket", "train": "trains", "other": "assembles, samples, evaluates"}
    return {_WORK_COLOURS[kind]: text for kind, text in words.items()} | {
        _WORK_COLOURS["held"]: "devices held (starting, waiting, saving)"
    }


def _in_legend(label: str) -> str:
    return textwrap.fill(label, _LABEL_LETTERS)


def _percents_with_legend(axes: Axes) -> None:
    axes.set_ylim(0, 100)
    axes.set_ylabel("% of weights")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _thinned(curve: Curve) -> tuple[Numbers, Numbers]:
    """Means of neighbours, so that no more points are drawn than can be seen."""
    each = -(-len(curve.steps) // _MOST_POINTS)
    starts = np.arange(0, len(curve.steps), max(each, 1))
    counts = np.diff([*starts, len(curve.steps)])
    return (np.add.reduceat(curve.steps, starts) / counts, np.add.reduceat(curve.values, starts) / counts)


def _within(start: float, stop: float | None, job: str, held: list[Bar]) -> list[tuple[float, float]]:
    """The parts of a stage's time in which its job held devices: it may have been interrupted."""
    spans = []
    for bar in held:
        first, last = max(start, bar.start), min(stop if stop is not None else bar.stop, bar.stop)
        if bar.job == job and first < last:
            spans.append((first, last))
    return spans


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _place(moment: float, spans: list[tuple[float, float]], total: float) -> float:
    """Seconds on the axis."""
    before = 0.0
    for start, stop in spans:
        if moment <= stop:
            return before + max(0.0, moment - start)
        before += stop - start + _GAP * total
    return before
