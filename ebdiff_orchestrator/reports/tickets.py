"""`ebdiff tickets`: when each ticket appeared, when it would have, and how the tickets differ from each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ebdiff_orchestrator.reports.mask_moves import RecordedMoves, recorded_moves
from ebdiff_orchestrator.reports.masks import (
    Distances,
    NamedMask,
    RecordedMasks,
    distance_matrix,
    drawn_at,
    kept_bits,
    recorded_masks,
)
from ebdiff_orchestrator.run.run_directory import RunDirectory
from schemas.errors import UserError, user_error
from schemas.job import REPLACED_SHARE
from schemas.manifest import Manifest
from schemas.plan import DrawPlan
from schemas.regions import RegionPlan
from schemas.stage_names import train_stage_name


@dataclass(frozen=True)
class Settings:
    """The convergence rules to try on the recorded masks, besides the plan's own."""

    thresholds: tuple[float, ...] = (0.05, 0.1, 0.2)
    queue_lengths: tuple[int, ...] = (3, 5, 10)
    strides: tuple[int, ...] = (1, 10, 100)

    def __post_init__(self) -> None:
        _check(
            "--thresholds", self.thresholds, 0 < min(self.thresholds) <= max(self.thresholds) <= 1, "over 0, up to 1"
        )
        _check("--queue-lengths", self.queue_lengths, min(self.queue_lengths) >= 2, "2 or more")
        _check("--strides", self.strides, min(self.strides) >= 1, "1 or more")

    def plans(self, own: DrawPlan) -> tuple[DrawPlan, ...]:
        """Every combination, the plan's own values among them: by queue length, stride, then threshold."""
        lengths = sorted({*self.queue_lengths, own.queue_length})
        strides = sorted({*self.strides, own.queue_stride})
        thresholds = sorted({*self.thresholds, own.threshold})
        return tuple(
            own.model_copy(update={"queue_length": length, "queue_stride": stride, "threshold": threshold})
            for length, stride, threshold in product(lengths, strides, thresholds)
        )


@dataclass(frozen=True)
class WouldBeDrawn:
    """Where the recorded masks would have agreed under another rule; None: not within them."""

    threshold: float
    queue_length: int
    queue_stride: int
    interval: int | None
    step: int | None


@dataclass(frozen=True)
class TicketReport:
    """One region's masks, their distances [masks, masks], and when they would have agreed."""

    masks: RecordedMasks
    distances: Distances
    would_be_drawn: tuple[WouldBeDrawn, ...]

    def newest(self, last: int | None) -> tuple[list[int], Distances]:
        """The intervals of the last so many masks, of all for None, and the distances between them."""
        first = max(0, len(self.masks) - last) if last else 0
        return self.masks.intervals[first:].tolist(), self.distances[first:, first:]


@dataclass(frozen=True)
class Difference:
    """How far two masks lie from each other.

    `overlap`: the share of the smaller one's kept channels that the larger one keeps too. `larger_keeps`: the share of
    all channels that the larger one keeps, which is the overlap to expect of masks that have nothing to do with each
    other.
    """

    a: str
    b: str
    distance: float
    overlap: float
    larger_keeps: float


@dataclass(frozen=True)
class TicketsReport:
    """What `ebdiff tickets` shows of a run: `tickets` of channels, `moves` of masks of weights."""

    run: str
    tickets: tuple[TicketReport, ...]
    moves: tuple[RecordedMoves, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "tickets": [_ticket_as_json(report) for report in self.tickets],
            "sparse": [moves.as_json() for moves in self.moves],
            "differences": [vars(difference) for difference in self.differences],
            "notes": list(self.notes),
        }


def report_tickets(
    run_dir: Path, settings: Settings, against: Sequence[Path] = (), dense: Path | None = None
) -> TicketsReport:
    """The report of a run, drawing or finished; UserError for a folder without a run or masks of another network."""
    run = RunDirectory(run_dir)
    manifest = run.read()
    plan = manifest.plan
    recorded, moves = recorded_masks(run, plan), recorded_moves(run, plan)
    moved = {found.region for found in moves}
    notes = [note for region in plan.regions if region.name not in moved and (note := _note(manifest, region))]
    why = (
        "no mask is taken: slim keeps the first channels"
        if plan.draw.method == "slim"
        else "no mask has been saved yet"
    )
    notes += [f"{masks.region}: {why}." for masks in recorded if not len(masks)]
    own = [masks for masks in recorded if len(masks)]
    tickets = tuple(_ticket_report(masks, settings, plan.draw) for masks in own)
    chosen = [masks.chosen() for masks in own]
    others = ((path, RunDirectory(path)) for path in against)
    against_masks = [
        masks.chosen(f"{path}: ")
        for path, other in others
        for masks in recorded_masks(other, other.read().plan)
        if len(masks)
    ]
    differences = [_difference(a, b) for index, a in enumerate(chosen) for b in [*chosen[index + 1 :], *against_masks]]
    if dense is not None:
        from ebdiff_orchestrator.reports.dense_masks import dense_masks  # imports torch, which takes seconds

        ratios = [masks.pruning_ratio for masks in own]
        of_dense = dense_masks(plan, manifest.dense, dense, ratios)
        differences += [_difference(a, b) for a, b in zip(chosen, of_dense, strict=True)]
        notes.append(f"the dense model: the magnitude of the weights in {dense}, at each ticket's own ratio.")
    return TicketsReport(str(run_dir), tickets, moves, tuple(differences), tuple(notes))


def _note(manifest: Manifest, region: RegionPlan) -> str | None:
    """What to say of a region that has no masks to show."""
    sparsity = manifest.plan.sparsity_of(region)
    if sparsity is None:
        return None if region.pruning_ratio else f"{region.name}: keeps everything, so no mask is taken."
    replaced = manifest.stage(train_stage_name(region)).metrics.get(REPLACED_SHARE)
    moved = "not trained yet" if replaced is None else f"{replaced:.1%} of the first mask's weights were replaced"
    return f"{region.name}: {sparsity.sparsity:.0%} of the weights are masked ({sparsity.method}); {moved}."


def _ticket_report(masks: RecordedMasks, settings: Settings, own: DrawPlan) -> TicketReport:
    distances = distance_matrix(masks.packed, masks.bits)
    return TicketReport(masks, distances, tuple(_would_be_drawn(masks, distances, p) for p in settings.plans(own)))


def _would_be_drawn(masks: RecordedMasks, distances: Distances, plan: DrawPlan) -> WouldBeDrawn:
    position = drawn_at(distances, plan)
    return WouldBeDrawn(
        threshold=plan.threshold,
        queue_length=plan.queue_length,
        queue_stride=plan.queue_stride,
        interval=None if position is None else int(masks.intervals[position]),
        step=None if position is None else int(masks.steps[position]),
    )


def _difference(a: NamedMask, b: NamedMask) -> Difference:
    if a.bits != b.bits:
        raise UserError(
            f"{b.name}: its masks have {b.bits} bits, those of {a.name} {a.bits}; expected masks of the same dense "
            "network. Compare runs of one model."
        )
    smaller, larger = sorted((kept_bits(a.words), kept_bits(b.words)))
    return Difference(
        a=a.name,
        b=b.name,
        distance=kept_bits(a.words ^ b.words) / a.bits,
        overlap=kept_bits(a.words & b.words) / smaller if smaller else 0.0,
        larger_keeps=larger / a.bits,
    )


def _ticket_as_json(report: TicketReport) -> dict[str, Any]:
    masks = report.masks
    ticket = masks.ticket
    return {
        "region": masks.region,
        "pruning_ratio": masks.pruning_ratio,
        "draw_finished": masks.finished,
        "bits": masks.bits,
        "kept": kept_bits(masks.chosen().words),
        "drawn": ticket and ticket.model_dump(include={"interval", "step", "distances", "converged"}),
        "intervals": masks.intervals.tolist(),
        "steps": masks.steps.tolist(),
        "distances": report.distances.round(6).tolist(),
        "would_be_drawn": [vars(item) for item in report.would_be_drawn],
    }


def _check(option: str, values: tuple[float, ...], good: bool, expected: str) -> None:
    if not good:
        raise user_error(option, ",".join(map(str, values)), f"numbers, each {expected}", "Change them.")
