"""What a report says of one run, in the order of the page; each part is None or empty where there is nothing of it."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ebdiff_orchestrator.plans.load import preset_plan
from ebdiff_orchestrator.plans.preview import PlanPreview, preview_of
from ebdiff_orchestrator.reports.distances import measured_values
from ebdiff_orchestrator.reports.formats import MISSING, TextTable
from ebdiff_orchestrator.reports.masks import newest_of_run
from ebdiff_orchestrator.reports.measures import Measures, measures_of, method_of
from ebdiff_orchestrator.reports.page.curves import (
    Curve,
    curves_figure,
    distances_figure,
    moves_figure,
    timeline_figure,
    timeline_of,
)
from ebdiff_orchestrator.reports.page.pictures import previews, samples_grid
from ebdiff_orchestrator.reports.sizes_table import network_sizes
from ebdiff_orchestrator.reports.tickets import Settings, TicketReport, TicketsReport, report_tickets
from ebdiff_orchestrator.run.manifests import differing
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import SAMPLE
from ebdiff_orchestrator.run.time_left import duration
from region_workers.storage.tables import read_metrics
from schemas.errors import UserError
from schemas.job import METRICS_FILE
from schemas.manifest import POINTS_COUNTED, Manifest
from schemas.plan import Plan

_THRESHOLDS = Settings(thresholds=(0.05, 0.1, 0.2), queue_lengths=(3, 5, 10), strides=(1,))


def contents_of(
    run: RunDirectory, manifest: Manifest, numbers: itertools.count[int], picture_bytes: int
) -> dict[str, Any]:
    """What page.html.j2 shows of a run, its pictures in so many bytes: texts, to be escaped, tables and figures.

    `losses`, `heat_maps`, `moves` and `timeline` are SVG elements.
    """
    plan, preview = manifest.plan, preview_of(manifest)
    found, timeline = measures_of(manifest), timeline_of(manifest)
    tickets, strip = _tickets(run), previews(run, picture_bytes // 2)
    preset = preset_plan(plan.name)
    return {
        "name": plan.name,
        "location": run.short_location,
        "method": method_of(plan),
        "state": _state(manifest),
        "history": _history(manifest),
        "facts": _facts(manifest, found, preview),
        "troubles": [f"{name}: {record.error}" for name, record in manifest.stages.items() if record.error],
        "grid": samples_grid(run, picture_bytes - sum(len(picture.url) for picture in strip)),
        "previews": strip,
        "sizes": network_sizes(preview, with_attention=True),
        "sizes_note": _sizes_note(plan),
        "losses": _losses(run, manifest, numbers),
        "heat_maps": [distances_figure(report, numbers) for report in tickets.tickets if len(report.masks) > 1],
        "would_be_drawn": _would_be_drawn(tickets.tickets),
        "moves": [moves_figure(moves, numbers) for moves in tickets.moves],
        "ticket_notes": tickets.notes,
        "timeline": timeline_figure(timeline, numbers) if timeline else None,
        "launched_again": timeline is not None and len(timeline.gaps) > 0,
        "stages": _stages(manifest),
        "quality": _quality(manifest),
        "plan": yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100),
        "differs": None if preset is None else _differences(preset, plan),
        "preset": None if preset is None else plan.name,
        "software": sorted(manifest.software.items()),
    }


def _state(manifest: Manifest) -> str:
    if manifest.finished():
        return "finished"
    failed = [name for name, record in manifest.stages.items() if record.status == "failed"]
    done = sum(record.status == "done" for record in manifest.stages.values())
    return f"{'failed' if failed else 'not finished'}: {done} of {len(manifest.stages)} stages are done"


def _history(manifest: Manifest) -> str:
    """How each launch went, what had to be started more than once, and what came from other runs."""
    again = [f"{name} ({record.attempts} attempts)" for name, record in manifest.stages.items() if record.attempts > 1]
    taken = [name for name, record in manifest.stages.items() if record.reused_from]
    said = [f"Launched {len(manifest.launches)} times: {_launches(manifest)}."] if len(manifest.launches) > 1 else []
    said += [f"Started more than once: {', '.join(again)}."] if again else []
    said += [f"Taken over from other runs: {', '.join(taken)}."] if taken else []
    return " ".join(said)


def _launches(manifest: Manifest) -> str:
    """What is known of each launch: whether it came to the samples, and whether it went on after one that had."""
    told, finished = list[str](), False
    for launch in manifest.launches:
        jobs = {held.job for held in manifest.usage if launch.started_at <= held.started_at <= launch.ended_at}
        began = "begun" if not told else "trained further" if finished else "gone on with"
        is_last = launch is manifest.launches[-1]
        finished = manifest.finished() if is_last else SAMPLE in jobs
        early = "not finished" if is_last else "ended early (stopped, killed or failed)"  # the last may be at work
        took = duration(int(launch.ended_at - launch.started_at))
        told.append(f"{began}, {'finished' if finished else early} after {took}")
    return "; ".join(told)


def _facts(manifest: Manifest, found: Measures, preview: PlanPreview) -> list[tuple[str, str]]:
    """What stands first: a few numbers with their names."""
    costs, dense = preview.weighted, preview.dense
    facts = [(value.label, value.text(2)) for value in measured_values(manifest)]
    facts.append(("parameters, of the dense network's", f"{costs.params / dense.params:.0%}"))
    facts.append(("MACs of an image, of the dense network's", f"{costs.macs / dense.macs:.0%}"))
    if found.hours is not None:
        facts.append((found.hours.unit, f"{found.hours.hours:.3g}"))
    if found.wall_s is not None:
        facts.append(("from start to end", duration(int(found.wall_s))))
    if found.draw_share is not None:
        facts.append(("of the work was draws", f"{found.draw_share:.0%}"))
    return facts


def _sizes_note(plan: Plan) -> str:
    if plan.data.drawings is not None:
        return f"MACs: multiply-accumulates of one drawing of {POINTS_COUNTED} points, whole in either column."
    return (
        "MACs: multiply-accumulates of one image, as the paper counts them; + attention: with the attention's matrix "
        "products. Weighted: by the timesteps that each region owns."
    )


def _losses(run: RunDirectory, manifest: Manifest, numbers: itertools.count[int]) -> list[str]:
    """The losses of all trainings in one figure, of all draws in another."""
    figures = []
    for kind, ylabel in (("train", "loss of the experts"), ("draw", "loss while drawing")):
        curves = []
        for name in manifest.stages:
            stage, _, region = name.partition("/")
            rows = _metrics(run, name) if stage == kind else []
            if rows:
                steps, losses = (np.array([row[key] for row in rows], dtype=np.float64) for key in ("step", "loss"))
                curves.append(Curve(region, steps, losses))
        if curves:
            figures.append(curves_figure(curves, ylabel, numbers))
    return figures


def _metrics(run: RunDirectory, stage: str) -> list[dict[str, Any]]:
    try:
        rows, _ = newest_of_run(run, stage, METRICS_FILE, read_metrics)
    except UserError:
        return []  # damaged: `ebdiff resume` makes it again
    return rows or []


def _tickets(run: RunDirectory) -> TicketsReport:
    try:
        return report_tickets(Path(run.location), _THRESHOLDS)
    except UserError as error:
        return TicketsReport(run.location, (), (), (), (str(error),))


def _would_be_drawn(tickets: tuple[TicketReport, ...]) -> TextTable | None:
    """By rule, the interval and step at which each region's ticket would have been drawn."""
    if not tickets:
        return None
    headings = ("threshold", "queue", *(report.masks.region for report in tickets))
    rows = []
    for rules in zip(*(report.would_be_drawn for report in tickets), strict=True):
        cells = [MISSING if rule.interval is None else f"{rule.interval} (step {rule.step:,})" for rule in rules]
        rows.append((f"{rules[0].threshold:g}", str(rules[0].queue_length), *cells))
    return TextTable(headings, tuple(rows))


def _stages(manifest: Manifest) -> TextTable:
    headings = ("stage", "status", "attempts", "began", "seconds of work", "steps", "device", "memory GiB")
    rows = []
    for name, record in manifest.stages.items():
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.started_at)) if record.started_at else ""
        status = f"{record.status}, taken over" if record.reused_from else record.status
        hardware = record.hardware
        device = "" if hardware is None else f"{hardware.world_size} x {hardware.device}"
        memory = "" if record.peak_memory_bytes is None else f"{record.peak_memory_bytes / 2**30:.2f}"
        seconds = f"{record.active_s:,.0f}" if record.active_s else ""
        steps = f"{record.steps:,}" if record.steps else ""
        rows.append((name, status, str(record.attempts), began, seconds, steps, device, memory))
    return TextTable(headings, tuple(rows))


def _quality(manifest: Manifest) -> TextTable | None:
    rows = [
        (
            value.label,
            value.text(4),
            "higher" if value.higher_is_better else "lower",
            f"{value.num_images:,}",
            f"{value.evaluation.reference_images:,}",
            f"{value.evaluation.steps}",
            value.comparable_note,
        )
        for value in measured_values(manifest)
    ]
    headings = ("measure", "value", "better", "images", "against", "sampling steps", "note")
    return TextTable(headings, tuple(rows)) if rows else None


def _differences(preset: Plan, plan: Plan) -> TextTable | None:
    """The fields in which a plan differs from the preset of its name."""
    fields = differing(preset.model_dump(mode="json"), plan.model_dump(mode="json"))
    rows = [(name, _shown(own), _shown(usual)) for name, usual, own in fields]
    return TextTable(("field", "this run", "the preset"), tuple(rows)) if rows else None


def _shown(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
