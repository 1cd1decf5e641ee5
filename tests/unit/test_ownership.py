"""One driver at a time: who is refused, who takes a run over, and who then stops before it writes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from ebdiff_orchestrator.ownership import Claims, FolderClaims, RunTakenOverError, claim_run, process_identity
from ebdiff_orchestrator.run_directory import RunDirectory
from schemas.errors import UserError
from schemas.owner import Claim, is_outdated
from schemas.plan import Plan

LEASE_S = 1.0


@pytest.fixture
def claims(tmp_path: Path) -> FolderClaims:
    return FolderClaims(tmp_path)


def _elsewhere(number: int, token: str = "aaaaaaaa", **more: object) -> Claim:
    """A claim of a process of another machine."""
    values = {"number": number, "token": token, "host": "elsewhere", "pid": 1, "lease_s": LEASE_S, **more}
    return Claim.model_validate(values)


def _say(_: str) -> None:
    return


def _keep_alive(claims: Claims, claim: Claim, seconds: float) -> Thread:
    def beat() -> None:
        end, now = time.monotonic() + seconds, claim
        while time.monotonic() < end:
            now = now.model_copy(update={"beat": now.beat + 1})
            claims.write(now)
            time.sleep(LEASE_S / 5)

    thread = Thread(target=beat)
    thread.start()
    return thread


def _process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_the_numbers_of_a_run_s_owners_rise(claims: FolderClaims) -> None:
    for number in (1, 2, 3):
        owner = claim_run(claims, "run", say=_say)
        assert owner.name.startswith(f"{number:08d}-")
        owner.check()
        owner.release()


def test_a_holder_of_another_machine_that_is_seen_to_live_is_left_alone(claims: FolderClaims) -> None:
    claims.write(holder := _elsewhere(4))
    living = _keep_alive(claims, holder, 3 * LEASE_S)
    with pytest.raises(UserError, match=r"process 1 on elsewhere .*--take-over"):
        claim_run(claims, "run", say=_say)
    living.join()
    assert claims.names() == [holder.name]


def test_a_holder_of_another_machine_that_is_silent_for_its_lease_gives_way(claims: FolderClaims) -> None:
    claims.write(_elsewhere(4))
    said: list[str] = []
    owner = claim_run(claims, "run", say=said.append)
    assert owner.name.startswith("00000005-")
    assert "elsewhere" in said[0]
    owner.release()


def test_a_holder_that_released_the_run_costs_no_waiting(claims: FolderClaims) -> None:
    claims.write(_elsewhere(4, released=True))
    began = time.monotonic()
    claim_run(claims, "run", say=_say).release()
    assert time.monotonic() - began < LEASE_S


def test_a_holder_of_this_machine_that_was_killed_costs_no_waiting(claims: FolderClaims) -> None:
    with _process() as process:
        holder = _elsewhere(1, pid=process.pid, process=process_identity(process.pid), lease_s=60)
        claims.write(holder)
        with pytest.raises(UserError, match=f"process {process.pid}"):
            claim_run(claims, "run", say=_say)
        process.kill()
    claim_run(claims, "run", say=_say).release()


def test_a_halted_holder_gives_way_after_its_lease(claims: FolderClaims) -> None:
    with _process() as process:
        claims.write(_elsewhere(1, pid=process.pid, process=process_identity(process.pid)))
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        claim_run(claims, "run", say=_say).release()
        process.kill()


def test_of_two_that_claim_the_same_number_one_goes_on(claims: FolderClaims) -> None:
    first = claim_run(claims, "run", say=_say)
    claims.write(_elsewhere(1, token="zzzzzzzz"))  # it had looked before the first one wrote
    with pytest.raises(RunTakenOverError, match="process 1 on elsewhere"):
        first.check()
    first.release()
    assert claims.read("00000001-zzzzzzzz.json") == _elsewhere(1, token="zzzzzzzz")


def test_a_driver_whose_run_was_taken_over_writes_nothing_more(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    with first.held():
        manifest = first.begin(tiny_plan())
        assert not is_outdated(tmp_path, first.owner)
        before = first.owner
        with second.held(take_over=True):
            written = second.write(manifest.model_copy(update={"attempts": 7}))
            with pytest.raises(RunTakenOverError):
                first.write(manifest)
            assert is_outdated(tmp_path, before), "its workers would go on"
            assert second.read() == written
    assert second.read() == written


def test_an_owner_that_beats_late_does_not_bring_back_what_was_deleted(claims: FolderClaims) -> None:
    owner = claim_run(claims, "run", lease_s=0.2, say=_say)
    claims.delete(owner.name)
    time.sleep(0.3)
    assert claims.names() == []
    with pytest.raises(RunTakenOverError):
        owner.check()
    owner.release()
