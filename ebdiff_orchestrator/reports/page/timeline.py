"""When each job of a run held its devices and what it did, on an axis without the time between launches."""

from dataclasses import dataclass
from typing import Literal

from schemas.manifest import Manifest

Kind = Literal["held", "draw", "train", "other"]
_GAP = 0.01  # of the whole, between two launches
_UNITS = (("hours since the start", 3600.0, 2 * 3600.0), ("minutes since the start", 60.0, 120.0))


@dataclass(frozen=True)
class Bar:
    """What a job did from `start` to `stop`, in the timeline's unit."""

    job: str
    kind: Kind
    start: float
    stop: float


@dataclass(frozen=True)
class Timeline:
    """Bars of jobs, in the order in which they began. `gaps`: where launches meet."""

    jobs: tuple[str, ...]
    bars: tuple[Bar, ...]
    gaps: tuple[float, ...]
    unit: str


def timeline_of(manifest: Manifest) -> Timeline | None:
    """None while nothing has held a device."""
    held = [Bar(usage.job, "held", usage.started_at, usage.ended_at) for usage in manifest.usage]
    if not held:
        return None
    regions = {name: f"region {name.removeprefix('train/')}" for name in manifest.stages if name.startswith("train/")}
    did = []
    for name, record in manifest.stages.items():
        job = regions.get(name.replace("draw/", "train/"), "shared draw" if name == "draw/shared" else name)
        kind: Kind = "draw" if name.startswith("draw/") else "train" if name.startswith("train/") else "other"
        if record.started_at is not None and not record.reused_from:
            did += [Bar(job, kind, *span) for span in _within(record.started_at, record.finished_at, job, held)]
    did += [Bar(bar.job, "other", bar.start, bar.stop) for bar in held if bar.job == "evaluate"]
    spans = _merged(
        [(bar.start, bar.stop) for bar in held] + [(one.started_at, one.ended_at) for one in manifest.launches]
    )
    total = sum(stop - start for start, stop in spans)
    unit, seconds = next(
        ((unit, each) for unit, each, least in _UNITS if total >= least), ("seconds since the start", 1.0)
    )
    jobs = tuple(dict.fromkeys(bar.job for bar in sorted(held, key=lambda bar: bar.start)))
    bars = tuple(
        Bar(bar.job, bar.kind, _place(bar.start, spans, total) / seconds, _place(bar.stop, spans, total) / seconds)
        for bar in (*held, *did)
        if bar.job in jobs
    )
    gaps = tuple((_place(start, spans, total) - _GAP * total / 2) / seconds for start, _ in spans[1:])
    return Timeline(jobs, bars, gaps, unit)


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
