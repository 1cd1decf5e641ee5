"""Features of many images, made by many workers: the missing shards shared out, and what is done shown."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from ebdiff_orchestrator.cluster.connecting import connect
from ebdiff_orchestrator.cluster.executor import Executor
from ebdiff_orchestrator.evaluation.work import (
    IMAGES_FOLDER,
    Shard,
    finished_record,
    make_shards,
    progress_file,
    record_file,
    shards_of,
)
from ebdiff_orchestrator.run.view import View
from region_workers.storage.durable import remove_leftovers
from region_workers.storage.integrity import read_if_whole
from schemas.errors import RunFailed
from schemas.evaluation import FeatureJob
from schemas.job import Progress
from schemas.plan import WorkersPlan
from schemas.process import unix_time

_CALLS_A_WORKER = 4  # a few calls each, so that a slow or late worker holds up little
_POLL_S = 1.0


@dataclass
class Workers:
    """Who does the work, found when there is first something to do. `used` is None until then."""

    plan: WorkersPlan
    address: str | None
    executor: Executor | None
    view: View
    stack: ExitStack
    used: Executor | None = None

    def get(self) -> Executor:
        """The executor; joins the cluster or starts an embedded Ray the first time, unless one was given."""
        if self.used is None:
            if self.executor is None:
                self.view.line("Connecting to Ray ...")
            self.used = self.stack.enter_context(connect(self.plan, 1, self.address, executor=self.executor))
            if self.executor is None:
                at_once = max(1, self.used.workers_at_once())
                self.view.line(f"{at_once} workers at once; free: {self.used.describe_free()}.")
        return self.used


def make_features(workers: Workers, job: FeatureJob, what: str) -> None:
    """Make the shards of the job that are not there and whole. Raises RunFailed if a worker could not."""
    folder, shards = Path(job.folder), shards_of(job.num_images)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in shards if finished_record(job, shard) is None]
    for shard in missing:
        record_file(folder, shard).unlink(missing_ok=True)
        progress_file(folder, shard).unlink(missing_ok=True)
    if missing:
        _make(missing, workers, job, what)
    for each in (folder, folder / IMAGES_FOLDER):
        remove_leftovers(each)  # of workers that were killed: pytorch-fid would count a half-written image


def _make(missing: Sequence[Shard], workers: Workers, job: FeatureJob, what: str) -> None:
    folder, shards = Path(job.folder), shards_of(job.num_images)
    if len(missing) < len(shards):
        workers.view.line(f"{what}: {len(shards) - len(missing)} of {len(shards)} parts are there already.")
    executor = workers.get()
    text = job.model_copy(update={"use_gpu": executor.request.gpus > 0}).model_dump_json()
    calls = [(text, part) for part in shared_out(missing, max(1, executor.workers_at_once()) * _CALLS_A_WORKER)]
    with _shown(workers.view, what, folder, shards):
        for _, failure in executor.run_many(make_shards, calls):
            if failure is not None:
                raise RunFailed(f"{failure} What is finished is kept: the same command goes on.")
    lost = [shard.name for shard in missing if finished_record(job, shard) is None]
    if lost:
        raise RunFailed(f"{what}: {lost[0]} was made but is not in {folder}. Workers must share the run directory.")


def shared_out(shards: Sequence[Shard], parts: int) -> list[tuple[int, ...]]:
    """The shards' indices in at most `parts` calls of about equally many."""
    indices = [shard.index for shard in shards]
    return [tuple(indices[part::parts]) for part in range(min(parts, len(indices)))]


@contextmanager
def _shown(view: View, what: str, folder: Path, shards: Sequence[Shard]) -> Iterator[None]:
    """Show on the view, from a thread, how many images are done, as the workers' files say."""
    ended = Event()
    began, before = time.monotonic(), images_done(folder, shards)
    total = sum(shard.count for shard in shards)

    def show() -> None:
        done = images_done(folder, shards)
        rate = (done - before) / max(time.monotonic() - began, 1e-9)
        note = f"{rate:,.1f} images/s" if rate else ""
        state = "done" if done == total else "running"
        progress = {"step": done, "total_steps": total, "steps_per_s": rate or None, "state": state, "note": note}
        view.job(what, Progress.model_validate({"stage": "images", "updated_at": unix_time(), **progress}))

    def watch() -> None:
        while not ended.wait(_POLL_S):
            show()

    watcher = Thread(target=watch, name=f"watch {what}", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        show()


def images_done(folder: Path, shards: Sequence[Shard]) -> int:
    """Images of finished shards, and as much of the others as their workers have noted."""
    return sum(
        shard.count if record_file(folder, shard).is_file() else _noted(progress_file(folder, shard))
        for shard in shards
    )


def _noted(path: Path) -> int:
    progress = read_if_whole(Progress, path)
    return 0 if progress is None else progress.step
