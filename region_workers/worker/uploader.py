"""A worker's folder for a run in an object store: what it begins with is fetched, what it makes is uploaded.

The worker reads and writes a folder of its own machine, as it would a run directory. A thread uploads every file once
it is whole, so that training does not wait for the store; what says that other files are whole goes last.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread

from region_workers.storage.checkpoint_files import CHECKPOINT_FILE
from region_workers.storage.durable import is_temporary
from region_workers.storage.locks import OwnFolder
from region_workers.storage.run_files import RunFiles, local_folder
from region_workers.training.failures import OutdatedError, ScratchLostError
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

_ROUND_S = 2.0
_LAST = {CHECKPOINT_FILE: 1, RESULT_FILE: 2}  # they say that the files before them are whole
_NOT_SENT = (".lock", GROW_FILE)

Stamp = tuple[int, int, int]  # size, time of change, inode: what tells a changed file from an unchanged one


@contextmanager
def working_folder(job: WorkerJob, place: Path, sends_all: bool) -> Iterator[tuple[WorkerJob, Uploader | None]]:
    """The job with a folder for its run directory; for a run in an object store one below `place`, and its uploader."""
    if local_folder(job.run_dir) is not None:
        yield job, None
        return
    with OwnFolder(place, f"{socket.gethostname()}-") as own:
        uploader = Uploader(job, own, sends_all)
        uploader.fetch()
        with uploader.running():
            yield job.model_copy(update={"run_dir": str(uploader.folder)}), uploader


class Uploader:
    """Between one worker's folder and the store. With `sends_all` (rank zero) all files are sent, else failures alone.

    What the folder lacks means nothing: the store loses only what the worker `retire`s, by its name.
    """

    def __init__(self, job: WorkerJob, own: OwnFolder, sends_all: bool) -> None:
        self.folder = own.path / "run"
        self.folder.mkdir()
        self._own, self._sends_all = own, sends_all
        self._files = RunFiles(job.run_dir, self.folder, job.store_limit_s)
        self._stages, self._owner, self._attempt = job.stages(), job.owner, job.attempt
        self._tickets = f"{job.train.draw}/{TICKETS_FOLDER}/{job.train.region}" if job.train else None
        self._sent: dict[str, Stamp] = {}
        self._retired: list[str] = []
        self._turn = Lock()
        self._ended: Exception | None = None

    def fetch(self) -> None:
        """Download what the store has of the job's stages and of the ticket that it begins with."""
        for prefix in (*self._stages, *([self._tickets] if self._tickets else [])):
            self._files.fetch_folder(prefix)
        self._sent |= dict(self._whole_files())  # all of it is the store's
        self._poll()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Upload in the background; at the end, until everything is there."""
        over = Event()

        def rounds() -> None:
            while not over.wait(_ROUND_S):
                try:
                    self._upload()
                except OSError:
                    continue  # the store does not answer; the next round may get through
                except (ScratchLostError, OutdatedError) as error:
                    self._ended = error
                    return

        thread = Thread(target=rounds, name="uploader", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.flush()

    def flush(self) -> None:
        """Upload until nothing is left; OSError if the store does not take it, for as long as the plan says."""
        self._files.forgive_silence()
        self._upload()

    def retire(self, folder: Path) -> None:
        """The worker has deleted this folder for good: the store's goes too, once what replaces it is there."""
        self._retired.append(folder.relative_to(self.folder).as_posix())

    def check(self) -> None:
        """Raise what ended the uploads, so that the worker ends too."""
        if self._ended is not None:
            raise self._ended

    def cause_of(self, error: BaseException) -> BaseException:
        """What really ended the worker: the loss of its folder, where nothing can be written, or the error itself."""
        return ScratchLostError(self.folder) if self._is_lost() else error

    def _is_lost(self) -> bool:
        return self._own.is_lost() or not self.folder.is_dir()

    def _upload(self) -> None:
        """Send what is new or changed, then delete what the worker has retired, if all was still there to be sent.

        ScratchLostError, with only the failure sent, if the worker's folder is gone; OutdatedError if the run has
        another owner, or the job a newer attempt.
        """
        with self._turn:
            retired = list(self._retired)  # what replaces them is among the files
            self._poll()
            lost = self._is_lost()
            here = {key: stamp for key, stamp in self._whole_files() if not lost or key.endswith(FAILURE_FILE)}
            new = [key for key in sorted(here, key=self._order) if self._sent.get(key) != here[key]]
            is_sent = [self._send(key, here[key]) for key in new]
            if lost:
                raise ScratchLostError(self.folder)
            for folder in retired if all(is_sent) else ():
                self._delete(folder, here)
                self._retired.remove(folder)

    def _send(self, key: str, stamp: Stamp) -> bool:
        """Whether it was there: an old checkpoint may have been deleted just now."""
        if Path(key).name in _LAST:
            self._poll()
            if self._is_lost():
                raise ScratchLostError(self.folder)
        try:
            self._files.publish(key)
        except FileNotFoundError:
            return False
        self._sent[key] = stamp
        return True

    def _delete(self, folder: str, here: dict[str, Stamp]) -> None:
        """Delete what the store has under a retired folder, but for what the worker has written there since."""
        for key in sorted(self._files.list_keys(folder), key=self._order, reverse=True):
            if key not in here:
                self._files.delete(key)
                self._sent.pop(key, None)

    def _whole_files(self) -> Iterable[tuple[str, Stamp]]:
        """The whole files of the job's stages."""
        for stage in self._stages:
            for path in (self.folder / stage).rglob("*"):
                parts = path.relative_to(self.folder).parts
                sent = self._sends_all or path.name == FAILURE_FILE
                if sent and path.is_file() and not any(is_temporary(part) or part in _NOT_SENT for part in parts):
                    with suppress(FileNotFoundError):  # an old checkpoint, deleted just now
                        status = path.stat()
                        yield "/".join(parts), (status.st_size, status.st_mtime_ns, status.st_ino)

    def _order(self, key: str) -> tuple[bool, int, int, str]:
        """Progress first: it says that the stages are this attempt's. Then a stage after the one it begins with."""
        name = Path(key).name
        stage = next(number for number, stage in enumerate(self._stages) if key.startswith(f"{stage}/"))
        return name != PROGRESS_FILE, stage, _LAST.get(name, 0), key

    def _poll(self) -> None:
        """See what the driver asks for; OutdatedError if the run has another owner, or a newer attempt is at work."""
        self._files.fetch([STOP_FILE, *(f"{stage}/{GROW_FILE}" for stage in self._stages)])
        if self._files.has_newer_owner(self._owner):
            raise OutdatedError("the run has another owner; nothing more of this worker is sent")
        if any(self._is_left_behind(stage) for stage in self._stages):
            raise OutdatedError("a newer attempt is at work; nothing more of this worker is sent")

    def _is_left_behind(self, stage: str) -> bool:
        """Whether a newer attempt of the same driver's has said in the store that it is at this stage."""
        try:
            said = Progress.model_validate_json(self._files.read(f"{stage}/{PROGRESS_FILE}"))
        except (FileNotFoundError, ValueError):
            return False
        return said.owner == self._owner and said.attempt > self._attempt
