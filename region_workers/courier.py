"""A worker's folder for a run in an object store: what it begins with is fetched, what it makes is sent on.

The worker reads and writes a folder of its own machine, as it would a run directory. A thread carries every file on
once it is whole, so that training does not wait for the store; what says that other files are whole goes last.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Thread

from region_workers.device import World
from region_workers.object_store import ObjectStore
from schemas.digest import digest
from schemas.durable import is_temporary
from schemas.job import FAILURE_FILE, GROW_FILE, RESULT_FILE, STOP_FILE, TICKETS_FOLDER, WorkerJob
from schemas.location import object_url
from schemas.owner import OWNERS_FOLDER

CHECKPOINT_FILE = "checkpoint.json"
_ROUND_S = 2.0
_LAST_TRIES_S = 120.0
_LAST = {CHECKPOINT_FILE: 1, RESULT_FILE: 2}  # they say that the files before them are whole

Stamp = tuple[int, int, int]


@contextmanager
def working_folder(job: WorkerJob, world: World, scratch: Path) -> Iterator[tuple[WorkerJob, Courier | None]]:
    """The job as it is for this worker: with a folder for its run directory, which a courier looks after if need be."""
    url = object_url(job.run_dir)
    if url is None:
        yield job, None
        return
    place = scratch / digest([url, job.name, world.rank])[:16]
    shutil.rmtree(place, ignore_errors=True)  # an earlier attempt's
    folder = place / str(job.attempt)
    folder.mkdir(parents=True)
    courier = Courier(ObjectStore(url), folder, job, world)
    courier.fetch()
    try:
        with courier.at_work():
            yield job.model_copy(update={"run_dir": str(folder)}), courier
    finally:
        shutil.rmtree(place, ignore_errors=True)


class Courier:
    """Between one worker's folder and the store. Only the leading worker's files are sent, and anybody's failure."""

    def __init__(self, store: ObjectStore, folder: Path, job: WorkerJob, world: World) -> None:
        self._store, self._folder, self._world = store, folder, world
        self._stages = job.stages()
        self._tickets = f"{job.train.draw}/{TICKETS_FOLDER}/{job.train.region}" if job.train else None
        self._carried: dict[str, Stamp] = {}
        self._turn = Lock()

    def fetch(self) -> None:
        """Have the folder hold what the store has of the job's stages and of the ticket it begins with."""
        for prefix in (*self._stages, *([self._tickets] if self._tickets else [])):
            for key in self._store.list_keys(prefix):
                path = self._folder / key
                if ".." not in Path(key).parts and not path.is_file():
                    self._store.download(key, path)
                    self._carried[key] = _stamp(path)
        self._look()

    def hand_over(self) -> None:
        """What the leading worker has written so far is there for the others of the region."""
        if self._world.size == 1:
            return
        if self._world.leads:
            self.carry_all()
        self._world.barrier()
        if not self._world.leads:
            self.fetch()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Carry in the background; at the end, until everything is there."""
        over = Event()

        def rounds() -> None:
            while not over.wait(_ROUND_S):
                try:
                    self._carry()
                    self._look()
                except OSError:
                    continue  # the store does not answer; the next round may get through

        thread = Thread(target=rounds, name="courier", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.carry_all()

    def carry_all(self) -> None:
        """Carry until nothing is left; OSError if the store does not take it."""
        deadline = time.monotonic() + _LAST_TRIES_S
        while True:
            try:
                self._carry()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_ROUND_S)
            else:
                return

    def _carry(self) -> None:
        """Send what is new or changed, then delete what is gone here."""
        with self._turn:
            here = dict(self._files())
            for key in sorted(here, key=lambda key: (_LAST.get(Path(key).name, 0), key)):
                if self._carried.get(key) != here[key] and self._send(key):
                    self._carried[key] = here[key]
            gone = [key for key in self._carried if key not in here] if self._world.leads else []
            for key in sorted(gone, key=lambda key: (-_LAST.get(Path(key).name, 0), key)):
                self._store.delete(key)
                del self._carried[key]

    def _send(self, key: str) -> bool:
        """Whether the file was still there to be sent."""
        try:
            self._store.upload(self._folder / key, key)
        except FileNotFoundError:
            return False
        return True

    def _files(self) -> Iterable[tuple[str, Stamp]]:
        """The whole files of the job's stages."""
        for stage in self._stages:
            for path in (self._folder / stage).rglob("*"):
                parts = path.relative_to(self._folder).parts
                sent = self._world.leads or path.name == FAILURE_FILE
                if sent and path.is_file() and not any(is_temporary(part) or part == ".lock" for part in parts):
                    try:
                        yield "/".join(parts), _stamp(path)
                    except FileNotFoundError:
                        continue  # an old checkpoint, deleted just now

    def _look(self) -> None:
        """What the driver asks for, and whether the run has another owner."""
        for key in (STOP_FILE, *(f"{stage}/{GROW_FILE}" for stage in self._stages)):
            if self._store.stamps([key])[0] is not None:
                self._store.download(key, self._folder / key)
        owners = self._folder / OWNERS_FOLDER
        owners.mkdir(exist_ok=True)
        for name in self._store.names(OWNERS_FOLDER):
            (owners / name).touch()


def _stamp(path: Path) -> Stamp:
    """Another one after every change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
