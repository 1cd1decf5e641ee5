"""The workers' metrics, as they come, for the trackers: each row once, whoever was killed in between."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread

import torch

from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.ownership import RunTakenOverError
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import SAMPLE
from ebdiff_orchestrator.run.view import View
from ebdiff_orchestrator.trackers.group import TENSORBOARD_FOLDER, Series, Trackers
from region_workers.pruning.mask import queue_distances, unpack_mask
from region_workers.storage.checkpoint_files import checkpoint_name
from region_workers.storage.integrity import files_in
from region_workers.storage.tables import read_masks, read_metrics
from schemas.digest import digest
from schemas.execution import PreviewRecord, picture_key, record_key
from schemas.job import CHECKPOINTS_FOLDER, MASKS_FILE, METRICS_FILE, RECENT_METRICS_FILE, MetricsRow, RecentMetrics
from schemas.stage_names import is_draw

_LOOK_EVERY_S, _END_LIMIT_S = 2.0, 30.0
_PARQUET_EVERY_S = 30.0  # at most, of one stage: where rows came faster than they are told
_PUBLISH_EVERY_S = 60.0


@contextmanager
def fed_trackers(ledger: Ledger, view: View) -> Iterator[None]:
    """Within it, the plan's trackers are fed; at its end they are told all that is left."""
    plan, directory = ledger.plan, ledger.directory
    if not plan.logging.trackers:
        yield
        return
    run_id, run_name = digest([plan.name, ledger.manifest.created_at])[:32], Path(directory.location).name
    trackers = Trackers(plan, directory.path, run_id, run_name)
    feed = MetricsFeed(ledger, trackers, view)
    over = Event()
    thread = Thread(target=feed.work, args=(over,), name="metrics feed", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_END_LIMIT_S)
        trackers.close()
        feed.publish_curves()
    for warning in trackers.warnings():
        view.line(warning)


class MetricsFeed:
    """Between the stages' files and the trackers, which drop what they have. The driver neither waits for it nor fails.

    What cannot be read is tried again at the next look.
    """

    def __init__(self, ledger: Ledger, trackers: Trackers, view: View) -> None:
        self._ledger, self._trackers, self._view = ledger, trackers, view
        self._run = RunDirectory(ledger.directory.location, ledger.directory.owner)  # the thread's own
        self._plan = ledger.plan
        self._stages = [record.name for record in (*ledger.manifest.draws(), *ledger.manifest.trainings())]
        self._fed = dict.fromkeys(self._stages, 0)  # the last step
        self._read_at, self._read_step = dict.fromkeys(self._stages, 0.0), dict.fromkeys(self._stages, 0)
        self._ended: set[str] = set()
        self._previews = 0
        self._published: dict[str, int] = {}  # bytes: event files only grow
        self._published_at = time.monotonic()
        self._has_warned = False

    def work(self, over: Event) -> None:
        """What the thread does, until all is over."""
        while not over.wait(_LOOK_EVERY_S):
            self.look()
            if time.monotonic() - self._published_at >= _PUBLISH_EVERY_S:
                self.publish_curves()
        self.look()
        self._try(self._feed_samples)

    def look(self) -> None:
        for warning in self._trackers.warnings():
            self._view.line(warning)
        for stage in self._stages:
            if stage not in self._ended:
                self._try(partial(self._feed_stage, stage))
        self._try(self._feed_previews)

    def publish_curves(self) -> None:
        """Have a run that is elsewhere hold TensorBoard's files as they are now, and none of an earlier launch."""
        self._try(self._publish)
        self._published_at = time.monotonic()

    def _publish(self) -> None:
        if not self._run.files.is_copy or "tensorboard" not in self._plan.logging.trackers:
            return
        files = files_in(self._run.path / TENSORBOARD_FOLDER)
        sizes = {file.relative_to(self._run.path).as_posix(): file.stat().st_size for file in files}
        for key, size in sizes.items():
            if self._published.get(key) != size:
                self._run.publish(key)
                self._published[key] = size
        for key in set(self._run.files.list_keys(TENSORBOARD_FOLDER)) - set(sizes):
            self._run.discard(key)

    def _try(self, feed: Callable[[], None]) -> None:
        """The first failure of a launch is a line on the view."""
        try:
            feed()
        except RunTakenOverError:  # the driver itself stops for it
            return
        except Exception as error:  # noqa: BLE001 - a curve's failure is none of the run's
            if not self._has_warned:
                reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
                self._view.line(f"Trackers: something could not be read for them ({reason}). The run goes on.")
            self._has_warned = True

    def _feed_stage(self, stage: str) -> None:
        if self._ledger.is_done(stage):
            self._feed_files(stage, stage)
            self._ended.add(stage)
            return
        recent = self._recent(stage)
        if recent is None or recent.after > self._fed[stage] or is_draw(stage):
            self._feed_saved(stage)
        if recent is not None and recent.after <= self._fed[stage]:  # else a later checkpoint has what is missing
            self._feed(stage, recent.rows)

    def _feed_saved(self, stage: str) -> None:
        """What a newer checkpoint has; it may be deleted meanwhile, the next one has the same and more."""
        if self._read_at[stage] and time.monotonic() - self._read_at[stage] < _PARQUET_EVERY_S:
            return
        self._read_at[stage] = time.monotonic()
        step = self._run.saved_steps(stage)
        if step != self._read_step[stage]:
            with suppress(FileNotFoundError):
                self._feed_files(stage, f"{stage}/{CHECKPOINTS_FOLDER}/{checkpoint_name(step)}")
                self._read_step[stage] = step

    def _feed_files(self, stage: str, folder: str) -> None:
        rows = [MetricsRow.model_validate(row) for row in read_metrics(self._run.fetch(f"{folder}/{METRICS_FILE}"))]
        self._feed(stage, rows)
        if is_draw(stage) and (masks := self._run.fetch(f"{folder}/{MASKS_FILE}")).is_file():  # a dense region has none
            self._feed_masks(masks, rows)

    def _recent(self, stage: str) -> RecentMetrics | None:
        try:
            file = self._run.fetch(f"{stage}/{RECENT_METRICS_FILE}")
            return RecentMetrics.model_validate_json(file.read_text())
        except (OSError, ValueError):  # not there yet, or just being replaced
            return None

    def _feed(self, stage: str, rows: Sequence[MetricsRow]) -> None:
        """Those of the rows that are new; a worker that begins anew makes some again."""
        kind, region = stage.split("/", 1)
        for row in rows:
            if row.step > self._fed[stage]:
                self._trackers.scalars(Series(region, kind), row.progress(), row.step, row.unix_time_s)
                if took := row.resources():
                    self._trackers.scalars(Series(region, f"resources/{kind}"), took, row.step, row.unix_time_s)
                self._fed[stage] = row.step

    def _feed_masks(self, file: Path, rows: Sequence[MetricsRow]) -> None:
        """The largest distance of each mask to the others in its queue, beside the threshold."""
        steps = [row.step for row in rows]
        masks: dict[str, list[torch.Tensor]] = {}
        for mask in read_masks(file):
            region, step = str(mask["region"]), int(str(mask["step"]))
            seen = masks.setdefault(region, [])
            seen.append(unpack_mask(mask["mask"], mask["bits"]))
            distances = queue_distances(seen, self._plan.draw)
            if distances is not None:
                values = {"largest_distance": max(distances), "threshold": self._plan.draw.threshold}
                row = min(bisect_left(steps, step), len(rows) - 1)
                at = rows[row].unix_time_s if rows else file.stat().st_mtime
                self._trackers.scalars(Series(region, "masks"), values, step, at)

    def _feed_previews(self) -> None:
        while (file := self._run.fetch(record_key(self._previews + 1))).is_file():
            record = PreviewRecord.model_validate_json(file.read_text())
            self._previews = record.number
            picture = self._run.fetch(picture_key(record.number))
            self._trackers.image(Series("run", "previews"), record.number, picture, record.unix_s)
            if record.measures:
                self._trackers.scalars(Series("run", "measures"), record.measures, record.number, record.unix_s)

    def _feed_samples(self) -> None:
        """The grid of the run's samples, if it has them."""
        record = self._ledger.manifest.stage(SAMPLE)
        if record.status == "done" and record.finished_at is not None:
            trained = sum(self._ledger.manifest.stage(stage).steps for stage in self._stages)
            grid = self._run.fetch(f"{SAMPLE}/grid.png")
            self._trackers.image(Series("run", "samples"), trained, grid, record.finished_at)
