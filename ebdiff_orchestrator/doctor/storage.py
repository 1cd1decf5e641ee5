"""Where the run lies: a folder or an object store that all nodes share, written, replaced, made durable and locked."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ebdiff_orchestrator.doctor.report import Finding, wrong, wrong_or_fine
from region_workers.storage.durable import write_text
from region_workers.storage.run_files import RunFiles
from schemas.errors import UserError
from schemas.section import Section

_SHARED, _FILES, _LOCKS = "shared storage", "files", "locks"
_LOCK_FILE, _DRIVER_NAME = "lock", "driver"
_VISIBLE_WITHIN_S = 10.0  # what NFS may keep a folder's old listing for
Lock = Literal["held", "free", "unsupported"]
_STORE_REMEDY = (
    "Give the nodes the credentials and the endpoint (AWS_ENDPOINT_URL) of the store, and leave to write there."
)


class StorageAnswer(Section):
    """What one node found in the driver's folder.

    `reads`: the driver's file, with its content. `lock`: whether the driver's lock holds here too. `wrote`: the file
    that it made, or why it could not write, replace or make durable one (`problem`).
    """

    reads: bool
    lock: Lock = "free"
    wrote: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class StorageTest:
    """A folder below the run directory with a file and a lock of the driver's, there while it is being looked at."""

    folder: Path
    secret: str

    def sees(self, answer: StorageAnswer) -> bool:
        """Whether the driver reads what a node wrote."""
        return answer.wrote is not None and _reads(self.folder / answer.wrote, self.secret)


@contextmanager
def storage_test(run_dir: Path) -> Iterator[StorageTest]:
    """The driver's side, or OSError. Leaves nothing behind, not even the run directory if it was not there."""
    run_dir = run_dir.absolute()
    missing = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    folder = run_dir / f".doctor-{secrets.token_hex(6)}"
    folder.mkdir(parents=True)
    try:
        secret = secrets.token_hex(8)
        write_text(folder / _DRIVER_NAME, secret)
        with (folder / _LOCK_FILE).open("w") as lock:
            if _lock_state(lock.fileno()) == "unsupported":
                raise OSError(errno.ENOLCK, "flock is not supported")
            yield StorageTest(folder, secret)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for made in missing:
            made.rmdir()


def look_at_storage(folder: str, secret: str) -> dict[str, Any]:
    """The side of one node, run on it; a `StorageAnswer` as plain values."""
    path = Path(folder)
    if not _reads(path / _DRIVER_NAME, secret):
        return StorageAnswer(reads=False).model_dump(mode="json")
    name = f"node-{secrets.token_hex(6)}"
    problem = _write(path / name, secret)
    wrote = None if problem else name
    answer = StorageAnswer(reads=True, lock=_lock_of(path / _LOCK_FILE), wrote=wrote, problem=problem)
    return answer.model_dump(mode="json")


def judge_storage(run_dir: Path, answers: Mapping[str, StorageAnswer], seen: Mapping[str, bool]) -> list[Finding]:
    """`answers`: of the nodes; `seen`: whether the driver read what each of them wrote."""
    apart = [name for name, answer in answers.items() if not answer.reads or (answer.wrote and not seen[name])]
    told = [f"{', '.join(apart)}: {run_dir} is another folder there than here"] if apart else []
    mount = "Mount the same filesystem there, at the same path, and give --run-dir on it."
    cannot = [f"{name}: {answer.problem}" for name, answer in answers.items() if answer.problem is not None]
    findings = [
        wrong_or_fine(_SHARED, told, mount, f"{run_dir} is the same folder on {len(answers)} node(s)"),
        wrong_or_fine(
            _FILES,
            cannot,
            "Let the user that Ray runs as write there, on a filesystem with POSIX renames.",
            "written, replaced and made durable on every node",
        ),
    ]
    shared = {name: answer for name, answer in answers.items() if name not in apart}
    return [*findings, _judge_locks(shared)] if shared else findings


def cannot_write(run_dir: str, error: Exception) -> Finding:
    """The driver's own side failed."""
    remedy = "Give a --run-dir that can be written, on a filesystem with locks (NFS: with its lock service)."
    return wrong(_FILES, f"{run_dir}: {error}", remedy)


def _judge_locks(answers: Mapping[str, StorageAnswer]) -> Finding:
    loose = [f"{name} ({answer.lock})" for name, answer in answers.items() if answer.lock != "held"]
    told = [f"the driver's lock does not hold on {', '.join(loose)}"] if loose else []
    remedy = "Two launches could work on one run: mount with locks for the cluster (NFS: no nolock or local_lock)."
    return wrong_or_fine(_LOCKS, told, remedy, "a lock taken here holds on every node")


def _write(path: Path, secret: str) -> str | None:
    """Write durably, then replace by a rename, as the run does all the time; why that failed, if it did."""
    try:
        for text in ("an older content", secret):
            write_text(path, text)
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror or error}"
    return None


def _reads(path: Path, secret: str) -> bool:
    """Whether the file is there with this content, now or as soon as a cache of the filesystem lets us see it."""
    deadline = time.monotonic() + _VISIBLE_WITHIN_S
    while True:
        try:
            os.listdir(path.parent)  # noqa: PTH208 - has NFS ask its server anew
            if path.read_text() == secret:
                return True
        except OSError:
            if not path.parent.parent.is_dir():
                return False
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _lock_of(path: Path) -> Lock:
    with path.open("r+") as file:
        return _lock_state(file.fileno())


def _lock_state(descriptor: int) -> Lock:
    """Try to take the lock: `free` if it could be taken, and then is."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:
        return "unsupported"
    return "free"


class StoreAnswer(Section):
    """What one node found at the URL: the object that it wrote there, or why it could not."""

    wrote: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class StoreTest:
    """An object of the driver's below the run's URL, there while it is being looked at."""

    url: str
    secret: str

    def sees(self, answer: StoreAnswer) -> bool:
        """Whether the driver reads what a node wrote."""
        return answer.wrote is not None and _read_object(RunFiles(self.url), answer.wrote) == self.secret


@contextmanager
def store_test(url: str) -> Iterator[StoreTest]:
    """The driver's side; leaves nothing behind. OSError or UserError if it cannot."""
    test = StoreTest(f"{url}/.doctor-{secrets.token_hex(6)}", secrets.token_hex(8))
    store = RunFiles(test.url)
    try:
        store.write(_DRIVER_NAME, test.secret.encode())
        yield test
    finally:
        with suppress(OSError):  # what cannot be written cannot be deleted either, and the finding says so
            for key in store.list_keys():
                store.delete(key)


def look_at_store(url: str, secret: str) -> dict[str, Any]:
    """The side of one node, run on it; a `StoreAnswer` as plain values."""
    key = f"node-{secrets.token_hex(6)}"
    try:
        store = RunFiles(url)
        if _read_object(store, _DRIVER_NAME) != secret:
            return StoreAnswer(problem="what the driver wrote is not there").model_dump()
        store.write(key, secret.encode())
    except (OSError, UserError) as error:
        return StoreAnswer(problem=f"{type(error).__name__}: {error}").model_dump()
    return StoreAnswer(wrote=key).model_dump()


def judge_store(url: str, answers: Mapping[str, StoreAnswer], seen: Mapping[str, bool]) -> Finding:
    """`answers`: of the nodes; `seen`: whether the driver read what each of them wrote."""
    problems = [f"{name}: {answer.problem}" for name, answer in answers.items() if answer.problem is not None]
    problems += [f"{name}: wrote elsewhere" for name, answer in answers.items() if answer.wrote and not seen[name]]
    return wrong_or_fine(_SHARED, problems, _STORE_REMEDY, f"{url} is read and written by {len(answers)} node(s)")


def cannot_reach(error: Exception) -> Finding:
    """The driver's own side failed."""
    return wrong(_SHARED, str(error), _STORE_REMEDY)


def _read_object(store: RunFiles, key: str) -> str | None:
    try:
        return store.read(key).decode()
    except FileNotFoundError:
        return None
