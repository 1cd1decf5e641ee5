"""Where the run lies: a folder or an object store that all nodes share, written, replaced, made durable and locked."""

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

from ebdiff_orchestrator.cluster.executor import Executor
from ebdiff_orchestrator.doctor.facts import Finding, wrong, wrong_or_fine
from region_workers.storage.run_files import RunFiles, local_folder
from schemas.errors import UserError
from schemas.section import Section

_SHARED, _FILES, _LOCKS = "shared storage", "files", "locks"
_LOCK_FILE, _DRIVER_FILE = "lock", "driver"
_VISIBLE_WITHIN_S = 10.0  # what NFS may keep a folder's old listing for
Lock = Literal["held", "free", "unsupported"]
_STORE_REMEDY = (
    "Give the nodes the credentials and the endpoint (AWS_ENDPOINT_URL) of the store, and leave to write there."
)


class StorageAnswer(Section):
    """What one node found.

    `reads`: the driver's file, with its content. `lock`: whether the driver's lock holds here too; an object store has
    none. `wrote`: the file that it made, or why it could not write, replace or make durable one (`problem`). `seen`:
    whether the driver reads what the node wrote.
    """

    reads: bool = False
    lock: Lock | None = None
    wrote: str | None = None
    problem: str | None = None
    seen: bool = False


@dataclass(frozen=True)
class StorageTest:
    """A place below the run's with a file of the driver's, and in a folder a lock, there while nodes look at it."""

    location: str
    secret: str

    def judged(self, values: dict[str, Any]) -> StorageAnswer:
        """A node's answer, with what the driver sees of it."""
        answer = StorageAnswer.model_validate(values)
        seen = answer.wrote is not None and _reads(RunFiles(self.location), answer.wrote, self.secret)
        return answer.model_copy(update={"seen": seen})


def check_storage(machines: Executor, run_dir: str) -> list[Finding]:
    """Whether all nodes share the place of the run, and can work there."""
    folder = local_folder(run_dir)
    try:
        with storage_test(run_dir) as test:
            said = machines.on_each_node(look_at_storage, test.location, test.secret)
            answers = {node.node: test.judged(node.value) for node in said if node.problem is None}
    except (OSError, UserError) as error:  # of the driver's own side
        if folder is None:
            return [wrong(_SHARED, str(error), _STORE_REMEDY)]
        remedy = "Give a --run-dir that can be written, on a filesystem with locks (NFS: with its lock service)."
        return [wrong(_FILES, f"{run_dir}: {error}", remedy)]
    return judge_folder(folder, answers) if folder else [judge_store(RunFiles(run_dir).location, answers)]


@contextmanager
def storage_test(run_dir: str | Path) -> Iterator[StorageTest]:
    """The driver's file and lock, while nodes look at them; nothing is left behind. OSError or UserError."""
    folder = local_folder(run_dir)
    below = f"{folder or RunFiles(run_dir).location}/.doctor-{secrets.token_hex(6)}"
    test, files = StorageTest(below, secrets.token_hex(8)), RunFiles(below)
    with _new_folder(files.folder) if folder else _emptied(files):
        files.write(_DRIVER_FILE, test.secret.encode())
        yield test


@contextmanager
def _new_folder(path: Path) -> Iterator[None]:
    """A folder and a lock in it, for as long as it lasts."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.mkdir(parents=True)
    try:
        with (path / _LOCK_FILE).open("w") as lock:
            if _lock_state(lock.fileno()) == "unsupported":
                raise OSError(errno.ENOLCK, "flock is not supported")
            yield
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # a run may have begun there meanwhile
            for made in missing:
                made.rmdir()


@contextmanager
def _emptied(files: RunFiles) -> Iterator[None]:
    """Delete all objects at the end."""
    try:
        yield
    finally:
        with suppress(OSError):  # what cannot be written cannot be deleted either, and the finding says so
            for key in files.list_keys():
                files.delete(key)


def look_at_storage(location: str, secret: str) -> dict[str, Any]:
    """Runs on one node: reads, locks and writes there; a `StorageAnswer` as plain values."""
    found: dict[str, Any] = {}
    name, in_folder = f"node-{secrets.token_hex(6)}", local_folder(location)
    try:
        files = RunFiles(location)
        found["reads"] = _reads(files, _DRIVER_FILE, secret)
        if found["reads"]:
            if in_folder:
                with (in_folder / _LOCK_FILE).open("r+") as lock:
                    found["lock"] = _lock_state(lock.fileno())
            for text in ("an older content", secret):  # replaced, as the run does all the time
                files.write(name, text.encode())
            found["wrote"] = name
    except (OSError, UserError) as error:
        reason = getattr(error, "strerror", None) if in_folder else None
        found["problem"] = f"{type(error).__name__}: {reason or error}"
    return StorageAnswer(**found).model_dump()


def judge_folder(run_dir: Path, answers: Mapping[str, StorageAnswer]) -> list[Finding]:
    apart = [name for name, answer in answers.items() if not answer.reads or (answer.wrote and not answer.seen)]
    told = [f"{', '.join(apart)}: {run_dir} is another folder there than here"] if apart else []
    mount = "Mount the same filesystem there, at the same path, and give --run-dir on it."
    cannot = [f"{name}: {answer.problem}" for name, answer in answers.items() if answer.problem is not None]
    permit = "Let the user that Ray runs as write there, on a filesystem with POSIX renames."
    findings = [
        wrong_or_fine(_SHARED, told, mount, f"{run_dir} is the same folder on {len(answers)} node(s)"),
        wrong_or_fine(_FILES, cannot, permit, "written, replaced and made durable on every node"),
    ]
    shared = {name: answer.lock for name, answer in answers.items() if name not in apart}
    if shared:
        loose = [f"{name} ({lock})" for name, lock in shared.items() if lock != "held"]
        told = [f"the driver's lock does not hold on {', '.join(loose)}"] if loose else []
        remedy = "Two launches could work on one run: mount with locks for the cluster (NFS: no nolock or local_lock)."
        findings.append(wrong_or_fine(_LOCKS, told, remedy, "a lock taken here holds on every node"))
    return findings


def judge_store(url: str, answers: Mapping[str, StorageAnswer]) -> Finding:
    problems = [
        f"{name}: {answer.problem or 'what the driver wrote is not there'}"
        for name, answer in answers.items()
        if answer.wrote is None
    ]
    problems += [f"{name}: wrote elsewhere" for name, answer in answers.items() if answer.wrote and not answer.seen]
    return wrong_or_fine(_SHARED, problems, _STORE_REMEDY, f"{url} is read and written by {len(answers)} node(s)")


def _reads(files: RunFiles, name: str, content: str) -> bool:
    """Whether the file is there with this content, in a folder as soon as a cache of the filesystem lets us see it."""
    if files.is_copy:
        with suppress(FileNotFoundError):
            return files.read(name).decode() == content
        return False
    deadline = time.monotonic() + _VISIBLE_WITHIN_S
    while time.monotonic() < deadline:
        try:
            os.listdir(files.folder)  # noqa: PTH208 - has NFS ask its server anew
            if files.read(name).decode() == content:
                return True
        except OSError:
            if not files.folder.parent.is_dir():
                return False
        time.sleep(0.2)
    return False


def _lock_state(descriptor: int) -> Lock:
    """Try to take the lock: `free` if it could be taken, and then is."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:
        return "unsupported"
    return "free"
