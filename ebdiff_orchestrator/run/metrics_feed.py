"""The workers' metrics, as they come, for the trackers: each row once, whoever was killed in between."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.stages import SAMPLE
from ebdiff_orchestrator.run.view import View
from ebdiff_orchestrator.trackers import Series, Trackers
from region_workers.pruning.mask import queue_distances, unpack_mask
from region_workers.storage.checkpoint_files import checkpoint_name
from region_workers.storage.tables import read_masks, read_metrics
from schemas.digest import digest
from schemas.job import CHECKPOINTS_FOLDER, MASKS_FILE, METRICS_FILE, RECENT_METRICS_FILE, MetricsRow, RecentMetrics
from schemas.previews import PreviewRecord, picture_key, record_key

_LOOK_EVERY_S = 2.0
_PARQUET_EVERY_S = 30.0  # at most, of one stage: where rows came faster than they are told


@contextmanager
def fed_trackers(ledger: Ledger, view: View) -> Iterator[MetricsFeed]:
    """The plan's trackers, and what feeds them; at the end all is told to them that is left."""
    plan, directory = ledger.plan, ledger.directory
    with Trackers(plan, directory.path, digest([plan.name, ledger.manifest.created_at])[:32]) as trackers:
        feed = MetricsFeed(ledger, trackers, view)
        try:
            yield feed
        finally:
            feed.finish()
    for warning in trackers.warnings():
        view.line(warning)


class MetricsFeed:
    """Between the stages' files and the trackers, which drop what they have. Does nothing without trackers."""

    def __init__(self, ledger: Ledger, trackers: Trackers, view: View) -> None:
        self._ledger, self._trackers, self._view = ledger, trackers, view
        self._plan = ledger.plan
        self._stages = [name for name in ledger.manifest.stages if name.startswith(("draw/", "train/"))]
        self._fed: dict[str, int] = {}  # rows of a stage
        self._looked_at, self._read_at = 0.0, dict.fromkeys(self._stages, 0.0)
        self._ended: set[str] = set()
        self._previews = 0

    def poll(self) -> None:
        """Feed what is new, at most every two seconds."""
        if not self._plan.logging.trackers or time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        for warning in self._trackers.warnings():
            self._view.line(warning)
        for stage in self._stages:
            if stage in self._ended:
                continue
            if self._ledger.is_done(stage):
                self._ended.add(stage)
                self._feed_files(stage, stage)
            else:
                self._feed_recent(stage)
        self._feed_previews()

    def finish(self) -> None:
        """Feed all that is left, and the grid of the run's samples if it has them."""
        self._looked_at = 0.0
        self.poll()
        record = self._ledger.manifest.stage(SAMPLE)
        if record.status == "done" and record.finished_at is not None:
            trained = sum(self._ledger.manifest.stage(stage).steps for stage in self._stages)
            grid = self._ledger.directory.fetch(f"{SAMPLE}/grid.png")
            self._trackers.image(Series("run", "samples"), trained, grid, record.finished_at)

    def _feed_recent(self, stage: str) -> None:
        if stage not in self._fed:  # a launch begins with what earlier ones have saved
            self._fed[stage] = 0
            self._feed_saved(stage)
        recent = self._recent(stage)
        if recent is not None and recent.earlier > self._fed[stage]:
            self._feed_saved(stage)
        if recent is not None and recent.earlier <= self._fed[stage]:  # else a later checkpoint has what is missing
            self._feed(stage, recent.rows, recent.earlier)

    def _feed_saved(self, stage: str) -> None:
        """What the newest checkpoint has; it may be deleted meanwhile, the next one has the same and more."""
        if time.monotonic() - self._read_at[stage] < _PARQUET_EVERY_S:
            return
        self._read_at[stage] = time.monotonic()
        step = self._ledger.directory.saved_steps(stage)
        if step:
            self._feed_files(stage, f"{stage}/{CHECKPOINTS_FOLDER}/{checkpoint_name(step)}")

    def _feed_files(self, stage: str, folder: str) -> None:
        directory = self._ledger.directory
        with suppress(OSError, ValueError):
            rows = read_metrics(directory.fetch(f"{folder}/{METRICS_FILE}"))
            self._feed(stage, [MetricsRow.model_validate(row) for row in rows])
        if stage.startswith("draw/"):
            with suppress(OSError, ValueError):
                self._feed_masks(directory.fetch(f"{folder}/{MASKS_FILE}"))

    def _recent(self, stage: str) -> RecentMetrics | None:
        try:
            file = self._ledger.directory.fetch(f"{stage}/{RECENT_METRICS_FILE}")
            return RecentMetrics.model_validate_json(file.read_text())
        except (OSError, ValueError):  # not there yet, or just being replaced
            return None

    def _feed(self, stage: str, rows: Sequence[MetricsRow], earlier: int = 0) -> None:
        """Rows of a stage, behind so many `earlier` ones; a worker that begins anew makes rows again that it had."""
        kind, region = stage.split("/", 1)
        new = rows[max(0, self._fed.get(stage, 0) - earlier) :]
        for row in new:
            values = row.model_dump(exclude={"step", "unix_time_s"})
            self._trackers.scalars(Series(region, kind), values, row.step, row.unix_time_s)
        self._fed[stage] = self._fed.get(stage, 0) + len(new)

    def _feed_masks(self, file: Path) -> None:
        """The largest distance of each mask to the others in its queue, beside the threshold."""
        masks: dict[str, list[torch.Tensor]] = {}
        for row in read_masks(file):
            region, step = str(row["region"]), int(str(row["step"]))
            seen = masks.setdefault(region, [])
            seen.append(unpack_mask(row["mask"], row["bits"]))
            distances = queue_distances(seen, self._plan.draw)
            if distances is not None:
                values = {"largest_distance": max(distances), "threshold": self._plan.draw.threshold}
                self._trackers.scalars(Series(region, "masks"), values, step, file.stat().st_mtime)

    def _feed_previews(self) -> None:
        directory = self._ledger.directory
        while (file := directory.fetch(record_key(self._previews + 1))).is_file():
            record = PreviewRecord.model_validate_json(file.read_text())
            self._previews = record.number
            picture = directory.fetch(picture_key(record.number))
            self._trackers.image(Series("run", "previews"), record.number, picture, record.unix_s)
            if record.measures:
                self._trackers.scalars(Series("run", "measures"), record.measures, record.number, record.unix_s)
