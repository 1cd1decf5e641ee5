"""One driver at a time: claiming a run, showing that its owner lives, and noticing that another has taken it.

A driver claims a run under the next number and rewrites its claim as long as it works. Another that finds the claim
rewritten is refused; one that finds it left alone for the length of the lease, or its process gone, or that was told
to, claims the next number. Whoever is not the newest any more stops before it writes: in a folder a lock is held from
that look until the write is done, and by whoever claims; a store is looked at right before. Nobody's clock is compared
with another's: a claim lives if it is seen to change. The same files do this in a folder and in an object store.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from region_workers.storage.durable import remove_leftovers
from region_workers.storage.run_files import RunFiles
from schemas.errors import RunFailed, UserError, command
from schemas.job import OWNERS_FOLDER, Claim

LEASE_S = 30.0
LOCK = f"{OWNERS_FOLDER}/.lock"  # while it is held nobody else claims the run or changes it, if its place has locks
_LOOK_S = 0.5
_KEPT_CLAIMS = 5  # older ones say nothing that the newest does not

Say = Callable[[str], None]


class RunTakenOverError(RunFailed):
    """Another driver works on the run now."""


class RunInUseError(UserError):
    """Another driver is at work on the run: `holder`."""

    def __init__(self, where: str, holder: Claim | None) -> None:
        self.holder = _holder(holder)
        super().__init__(
            f"DIR = {where}: expected nobody else at work on this run, but {self.holder} is. Watch it with "
            f"`{command('status', where, '--watch')}`, wait until it has ended, give another DIR, or take the run "
            "over by launch or resume with --take-over."
        )


class Ownership:
    """This driver's claim to a run, from `claim_run` until `release`."""

    def __init__(self, files: RunFiles, claim: Claim) -> None:
        self._files, self._claim = files, claim
        self._released = Event()
        self._beating = Thread(target=self._beat, name="owner", daemon=True)
        self._beating.start()

    @property
    def name(self) -> str:
        """The claim's name, by which workers see whether the run has another owner."""
        return self._claim.name

    def release(self, leaves_nothing: bool = False) -> None:
        """Say that the run is free; the number stays taken. `leaves_nothing`: there is no run, nor are there claims.

        Where that cannot be said, as to a silent store, the lease runs out: no error hides why the run has ended.
        """
        self._released.set()
        self._beating.join()
        with suppress(OSError), self._files.locked(LOCK):
            if newest_claim(self._files) != self.name:
                return
            if leaves_nothing:
                self._files.discard(OWNERS_FOLDER)
                return
            try:
                write_claim(self._files, self._claim.model_copy(update={"released": True}))
            except OSError:  # as on a full disk, where it can still be deleted
                delete_claim(self._files, self.name)

    def _beat(self) -> None:
        while not self._released.wait(self._claim.lease_s / 5):
            self._claim = self._claim.model_copy(update={"beat": self._claim.beat + 1})
            try:
                if newest_claim(self._files) == self.name:
                    write_claim(self._files, self._claim)
            except OSError:
                continue  # the store does not answer; the next beat may get through


def check_newest(files: RunFiles, name: str) -> None:
    """Raise RunTakenOverError unless the claim of this name is the newest of the run."""
    newest = newest_claim(files)
    if newest != name:
        other = read_claim(files, newest) if newest else None
        who = f"process {other.pid} on {other.host}" if other else "another launch or resume"
        raise RunTakenOverError(
            f"{files.location}: {who} has taken this run over; this one has stopped and wrote nothing more."
        )


def claim_run(files: RunFiles, *, take_over: bool = False, lease_s: float = LEASE_S, say: Say) -> Ownership:
    """Claim the run; RunInUseError if another driver works on it, unless `take_over`.

    Where that cannot be known at once, this waits as long as the other's lease lasts to see whether it lives.
    """
    newest = newest_claim(files)
    holder = read_claim(files, newest) if newest else None
    if newest and not take_over and _lives(files, newest, holder, say):
        raise RunInUseError(files.location, holder)
    with files.locked(LOCK, make=True):
        remove_leftovers(files.folder / OWNERS_FOLDER)  # of a killed writer
        now = newest_claim(files)
        if now != newest:  # while this one looked, another claimed the run
            raise RunInUseError(files.location, read_claim(files, now) if now else None)
        return Ownership(files, _next_claim(files, newest, lease_s))


def newest_claim(files: RunFiles) -> str | None:
    """The name of the owner's claim; None if there is none."""
    return max(files.claims(), default=None)


def read_claim(files: RunFiles, name: str) -> Claim | None:
    """The claim of that name; None if it is gone or being written."""
    try:
        return Claim.model_validate_json(files.read(f"{OWNERS_FOLDER}/{name}"))
    except (FileNotFoundError, PermissionError, ValueError):
        return None


def write_claim(files: RunFiles, claim: Claim) -> None:
    files.write(f"{OWNERS_FOLDER}/{claim.name}", claim.model_dump_json().encode())


def delete_claim(files: RunFiles, name: str) -> None:
    files.delete(f"{OWNERS_FOLDER}/{name}")


def _next_claim(files: RunFiles, newest: str | None, lease_s: float) -> Claim:
    claim = Claim(
        number=int(newest.split("-")[0]) + 1 if newest else 1,
        token=secrets.token_hex(4),
        host=socket.gethostname(),
        pid=os.getpid(),
        process=process_identity(os.getpid()),
        lease_s=lease_s,
    )
    write_claim(files, claim)
    names = files.claims()
    if names[-1] != claim.name:  # two claimed the same number: the greater name has it
        delete_claim(files, claim.name)
        raise RunInUseError(files.location, read_claim(files, names[-1]))
    for name in names[:-_KEPT_CLAIMS]:
        delete_claim(files, name)
    return claim


def process_identity(pid: int, but_in: str = "ZX") -> str:
    """What tells a process of this machine from any other, before and after it: boot, PID namespace, PID, start.

    Empty where the system does not say, and for a process in one of these states: one that has ended, if not told.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if state in but_in else f"{boot}/{namespace}/{pid}/{fields[18]}"


def _lives(files: RunFiles, name: str, holder: Claim | None, say: Say) -> bool:
    if holder is not None and (holder.released or _is_gone(holder)):
        return False
    if holder is not None and _is_running(holder):
        return True
    lease_s = holder.lease_s if holder else LEASE_S
    silent = f"{files.location}: {_holder(holder)} has not said that it ended"
    say(f"{silent}; watching for {lease_s:.0f} s whether it lives ...")
    deadline = time.monotonic() + lease_s
    while time.monotonic() < deadline:
        time.sleep(min(_LOOK_S, lease_s))
        now = read_claim(files, name)
        if now is not None and now.released:
            return False
        if now is not None and holder is not None and now.beat != holder.beat:
            return True
        holder = holder or now
    return False


def _is_gone(holder: Claim) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    here = process_identity(os.getpid()).rsplit("/", 2)[0]
    same_machine = bool(here) and holder.process.rsplit("/", 2)[0] == here
    return same_machine and process_identity(holder.pid) != holder.process


def _is_running(holder: Claim) -> bool:
    """Whether the holder is a process of this machine, and not halted."""
    return bool(holder.process) and holder.process == process_identity(holder.pid, but_in="ZXTt")


def _holder(holder: Claim | None) -> str:
    return f"process {holder.pid} on {holder.host}" if holder else "its last owner"
