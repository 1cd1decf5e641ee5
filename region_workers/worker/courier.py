"""A worker's folder for a run in an object store: what it begins with is fetched, what it makes is sent on.

The worker reads and writes a folder of its own machine, as it would a run directory. A thread carries every file on
once it is whole, so that training does not wait for the store; what says that other files are whole goes last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread

from region_workers.storage.durable import is_temporary
from region_workers.storage.object_store import ObjectStore
from region_workers.training.device import World
from region_workers.training.failures import OutdatedError, ScratchLostError
from region_workers.worker.scratch import Scratch
from schemas.job import (
    FAILURE_FILE,
    GROW_FILE,
    PROGRESS_FILE,
    RESULT_FILE,
    STOP_FILE,
    TICKETS_FOLDER,
    Progress,
    WorkerJob,
)
from schemas.location import object_url
from schemas.owner import OWNERS_FOLDER, is_outdated

CHECKPOINT_FILE = "checkpoint.json"
_ROUND_S = 2.0
_LAST = {CHECKPOINT_FILE: 1, RESULT_FILE: 2}  # they say that the files before them are whole
_FIRST = {PROGRESS_FILE: -1}  # right after the look at whose the stage is: it says that it is this attempt's
_NOT_SENT = (".lock", GROW_FILE)

Stamp = tuple[int, int, int]


@contextmanager
def working_folder(job: WorkerJob, world: World, scratch: Path) -> Iterator[tuple[WorkerJob, Courier | None]]:
    """The job as it is for this worker: with a folder for its run directory, which a courier looks after if need be."""
    url = object_url(job.run_dir)
    if url is None:
        yield job, None
        return
    with Scratch(scratch) as own:
        courier = Courier(ObjectStore(url, job.store_limit_s), own, job, world)
        courier.fetch()
        with courier.at_work():
            yield job.model_copy(update={"run_dir": str(own.folder)}), courier


class Courier:
    """Between one worker's folder and the store. Only the leading worker's files are sent, and anybody's failure.

    What the folder lacks means nothing: the store loses only what the worker `retire`s, by its name.
    """

    def __init__(self, store: ObjectStore, scratch: Scratch, job: WorkerJob, world: World) -> None:
        self._store, self._scratch, self._folder, self._world = store, scratch, scratch.folder, world
        self._stages, self._owner, self._attempt = job.stages(), job.owner, job.attempt
        self._tickets = f"{job.train.draw}/{TICKETS_FOLDER}/{job.train.region}" if job.train else None
        self._carried: dict[str, Stamp] = {}
        self._retired: list[str] = []
        self._turn = Lock()
        self._ended: Exception | None = None

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
        if self._world.is_rank_zero:
            self.carry_all()
        self._world.barrier()
        if not self._world.is_rank_zero:
            self.fetch()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Carry in the background; at the end, until everything is there."""
        over = Event()

        def rounds() -> None:
            while not over.wait(_ROUND_S):
                try:
                    self._carry()
                except OSError:
                    continue  # the store does not answer; the next round may get through
                except (ScratchLostError, OutdatedError) as error:
                    self._ended = error
                    return

        thread = Thread(target=rounds, name="courier", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.carry_all()

    def carry_all(self) -> None:
        """Carry until nothing is left; OSError if the store does not take it, for as long as the plan says."""
        self._store.begin_anew()
        self._carry()

    def retire(self, folder: Path) -> None:
        """The worker has deleted this folder for good: the store's goes too, once what replaces it is there."""
        self._retired.append(folder.relative_to(self._folder).as_posix())

    def check(self) -> None:
        """Raise what ended the carrying, so that the worker ends too."""
        if self._ended is not None:
            raise self._ended

    def cause_of(self, error: BaseException) -> BaseException:
        """What really ended the worker: the loss of its folder, where nothing can be written, or the error itself."""
        return ScratchLostError(self._folder) if self._scratch.is_lost() else error

    def _carry(self) -> None:
        """Send what is new or changed, then delete what the worker has retired.

        ScratchLostError, with only the failure sent, if the worker's folder is gone; OutdatedError if the run has
        another owner, or the job a newer attempt.
        """
        with self._turn:
            retired = list(self._retired)  # what replaces them is among the files
            self._look()
            lost = self._scratch.is_lost()
            here = {key: stamp for key, stamp in self._files() if not lost or key.endswith(FAILURE_FILE)}
            for key in sorted(here, key=_order):
                if self._carried.get(key) != here[key]:
                    self._send(key, here[key])
            if lost:
                raise ScratchLostError(self._folder)
            for folder in retired:
                self._delete(folder, here)
                self._retired.remove(folder)

    def _send(self, key: str, stamp: Stamp) -> None:
        if Path(key).name in _LAST:
            self._look()
            if self._scratch.is_lost():
                raise ScratchLostError(self._folder)
        try:
            self._store.upload(self._folder / key, key)
        except FileNotFoundError:
            return  # an old checkpoint, deleted just now
        self._carried[key] = stamp

    def _delete(self, folder: str, here: dict[str, Stamp]) -> None:
        """Delete what the store has under a retired folder, but for what the worker has written there since."""
        for key in sorted(self._store.list_keys(folder), key=_order, reverse=True):
            if key not in here:
                self._store.delete(key)
                self._carried.pop(key, None)

    def _files(self) -> Iterable[tuple[str, Stamp]]:
        """The whole files of the job's stages."""
        for stage in self._stages:
            for path in (self._folder / stage).rglob("*"):
                parts = path.relative_to(self._folder).parts
                sent = self._world.is_rank_zero or path.name == FAILURE_FILE
                if sent and path.is_file() and not any(is_temporary(part) or part in _NOT_SENT for part in parts):
                    try:
                        yield "/".join(parts), _stamp(path)
                    except FileNotFoundError:
                        continue  # an old checkpoint, deleted just now

    def _look(self) -> None:
        """See what the driver asks for; OutdatedError if the run has another owner, or a newer attempt is at work."""
        for key in (STOP_FILE, *(f"{stage}/{GROW_FILE}" for stage in self._stages)):
            if self._store.stamps([key])[0] is not None:
                with suppress(FileNotFoundError):  # taken back just now
                    self._store.download(key, self._folder / key)
        owners = self._folder / OWNERS_FOLDER
        owners.mkdir(parents=True, exist_ok=True)
        for name in self._store.names(OWNERS_FOLDER):
            (owners / name).touch()
        if is_outdated(self._folder, self._owner):
            raise OutdatedError("the run has another owner; nothing more of this worker is sent")
        if any(self._is_left_behind(stage) for stage in self._stages):
            raise OutdatedError("a newer attempt is at work; nothing more of this worker is sent")

    def _is_left_behind(self, stage: str) -> bool:
        """Whether a newer attempt of the same driver's has said in the store that it is at this stage."""
        try:
            said = Progress.model_validate_json(self._store.read(f"{stage}/{PROGRESS_FILE}"))
        except (FileNotFoundError, ValueError):
            return False
        return said.owner == self._owner and said.attempt > self._attempt


def _order(key: str) -> tuple[int, str]:
    return {**_FIRST, **_LAST}.get(Path(key).name, 0), key


def _stamp(path: Path) -> Stamp:
    """Another one after every change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
