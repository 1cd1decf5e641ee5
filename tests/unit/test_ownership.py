"""One driver at a time: who is refused, who takes a run over, and who then stops before it writes."""

import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from conftest import MakePlan

from ebdiff_orchestrator.run import run_directory
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.ownership import (
    RunTakenOverError,
    check_newest,
    claim_run,
    delete_claim,
    process_identity,
    read_claim,
    write_claim,
)
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.storage.run_files import RunFiles
from schemas.errors import RunFailed, UserError
from schemas.job import Claim
from schemas.manifest import Manifest

LEASE_S = 2.0  # a busy machine may halt a test for a second


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    return RunFiles(tmp_path)


def _elsewhere(number: int, token: str = "aaaaaaaa", **more: object) -> Claim:
    """A claim of a process of another machine."""
    values = {"number": number, "token": token, "host": "elsewhere", "pid": 1, "lease_s": LEASE_S, **more}
    return Claim.model_validate(values)


def _keep_alive(files: RunFiles, claim: Claim, seconds: float) -> Thread:
    def beat() -> None:
        end, now = time.monotonic() + seconds, claim
        while time.monotonic() < end:
            now = now.model_copy(update={"beat": now.beat + 1})
            write_claim(files, now)
            time.sleep(LEASE_S / 5)

    thread = Thread(target=beat)
    thread.start()
    return thread


def _process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_the_numbers_of_a_run_s_owners_rise(files: RunFiles) -> None:
    for number in (1, 2, 3):
        owner = claim_run(files, say=print)
        assert owner.name.startswith(f"{number:08d}-")
        check_newest(files, owner.name)
        owner.release()


def test_a_holder_of_another_machine_that_is_seen_to_live_is_left_alone(files: RunFiles) -> None:
    write_claim(files, holder := _elsewhere(4))
    living = _keep_alive(files, holder, 2 * LEASE_S)
    with pytest.raises(UserError, match=r"process 1 on elsewhere .*--take-over"):
        claim_run(files, say=print)
    living.join()
    assert files.claims() == [holder.name]


@pytest.mark.parametrize("released", [True, False])
def test_a_holder_of_another_machine_gives_way_once_released_or_silent_for_its_lease(
    files: RunFiles, released: bool
) -> None:
    write_claim(files, _elsewhere(4, released=released))
    began, said = time.monotonic(), list[str]()
    owner = claim_run(files, say=said.append)
    assert (time.monotonic() - began < LEASE_S) is released, "only a silent one is watched"
    assert ["elsewhere" in line for line in said] == ([] if released else [True])
    assert owner.name.startswith("00000005-")
    owner.release()


def test_a_holder_of_this_machine_that_was_killed_costs_no_waiting(files: RunFiles) -> None:
    with _process() as process:
        holder = _elsewhere(1, pid=process.pid, process=process_identity(process.pid), lease_s=60)
        write_claim(files, holder)
        with pytest.raises(UserError, match=f"process {process.pid}"):
            claim_run(files, say=print)
        process.kill()
    claim_run(files, say=print).release()


def test_a_halted_holder_gives_way_after_its_lease(files: RunFiles) -> None:
    with _process() as process:
        write_claim(files, _elsewhere(1, pid=process.pid, process=process_identity(process.pid)))
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        claim_run(files, say=print).release()
        process.kill()


def test_a_driver_that_lost_the_run_says_neither_that_it_lives_nor_that_it_ended(files: RunFiles) -> None:
    first = claim_run(files, lease_s=0.2, say=print)
    write_claim(files, newer := _elsewhere(2))
    time.sleep(0.2)  # whatever it was about to write is written
    delete_claim(files, first.name)  # as a newer owner does, in time
    time.sleep(0.3)
    assert files.claims() == [newer.name]
    first.release()
    assert files.claims() == [newer.name]
    assert read_claim(files, newer.name) == newer


def test_of_two_that_claim_the_same_number_one_goes_on(files: RunFiles) -> None:
    first = claim_run(files, say=print)
    write_claim(files, _elsewhere(1, token="ffffffff"))  # it had looked before the first one wrote
    with pytest.raises(RunTakenOverError, match="process 1 on elsewhere"):
        check_newest(files, first.name)
    first.release()
    assert read_claim(files, "00000001-ffffffff.json") == _elsewhere(1, token="ffffffff")


def test_an_owner_that_beats_late_does_not_bring_back_what_was_deleted(files: RunFiles) -> None:
    owner = claim_run(files, lease_s=0.2, say=print)
    delete_claim(files, owner.name)
    time.sleep(0.3)
    assert files.claims() == []
    with pytest.raises(RunTakenOverError):
        check_newest(files, owner.name)
    owner.release()


def test_a_place_that_fails_at_the_end_hides_no_error_nor_holds_the_run(
    files: RunFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def fail() -> None:
        with RunDirectory(tmp_path).held(print):
            (tmp_path / "manifest.json").touch()
            monkeypatch.setattr(RunFiles, "write", refuse)
            raise RunFailed("the first error")

    with pytest.raises(RunFailed, match="the first error"):
        fail()
    assert files.claims() == [], "a full disk still deletes"


@pytest.mark.parametrize("name", ["notes.json", "1-a.json", "99999999-mine.json", "\u0661-aaaaaaaa.json"])
def test_a_file_that_is_no_claim_is_no_owner(files: RunFiles, tmp_path: Path, name: str) -> None:
    (tmp_path / ".owners").mkdir()
    (tmp_path / ".owners" / name).write_text("{}")
    owner = claim_run(files, say=print)
    check_newest(files, owner.name)
    assert not RunFiles(tmp_path).has_newer_owner(owner.name)
    owner.release()
    assert (tmp_path / ".owners" / name).exists()


def test_what_a_launch_killed_at_its_first_claim_leaves_is_cleared(files: RunFiles, tmp_path: Path) -> None:
    left = tmp_path / ".owners" / ".partial-0123456789ab-00000001-aaaaaaaa.json"
    left.parent.mkdir()
    left.write_text('{"numb')
    with RunDirectory(tmp_path).held(print):
        assert not left.exists()


def _tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*")}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


CHANGES: dict[str, Callable[[RunDirectory, Manifest], object]] = {
    "manifest": lambda run, manifest: run.write(manifest),
    "note": lambda run, _: run.write_note("train/all/grow-requested", 1),
    "discard a folder": lambda run, _: run.discard("kept"),
    "discard a file": lambda run, _: run.discard("kept/file"),
    "publish": lambda run, _: run.publish("kept"),
    "extend": lambda run, manifest: Ledger(run).extend(manifest.plan),
    "begin": lambda run, manifest: Ledger.begin(run, manifest.plan),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_changes_by_a_driver_that_lost_the_run(
    change: Callable[[RunDirectory, Manifest], object], tiny_plan: MakePlan, tmp_path: Path
) -> None:
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    with first.held(print):
        manifest = Ledger.begin(first, tiny_plan()).manifest
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "file").write_text("second's")
        assert not RunFiles(tmp_path).has_newer_owner(first.owner)
        with second.held(print, take_over=True):
            written = second.write(manifest.model_copy(update={"attempts": 7}))
            before = _tree(tmp_path)
            with pytest.raises(RunTakenOverError):
                change(first, manifest)
            assert _tree(tmp_path) == before
            assert RunFiles(tmp_path).has_newer_owner(first.owner), "its workers would go on"
            assert second.read() == written
    assert second.read() == written


def test_nobody_claims_a_run_between_an_owner_s_look_and_its_write(
    tiny_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    took: list[int] = []
    write_model = run_directory.write_model

    def take() -> None:
        with second.held(print, take_over=True):
            took.append(second.write(second.read().model_copy(update={"attempts": 99})).attempts)

    taking = Thread(target=take)

    def slowly(path: Path, model: Manifest) -> None:
        if not taking.ident:
            taking.start()
            time.sleep(0.5)
            assert not took
        write_model(path, model)

    with first.held(print):
        manifest = Ledger.begin(first, tiny_plan()).manifest
        monkeypatch.setattr(run_directory, "write_model", slowly)
        first.write(manifest.model_copy(update={"attempts": 1}))
        taking.join(timeout=20)
        with pytest.raises(RunTakenOverError):
            first.write(manifest)
    assert second.read().attempts == 99


_DRIVER = """
import sys, time
from pathlib import Path
from ebdiff_orchestrator.run.run_directory import RunDirectory
from schemas.errors import RunFailed
run = RunDirectory(sys.argv[1])
with run.held(print):
    manifest = run.read()
    changes = lambda: run.write(manifest), lambda: run.write_note("stop-requested"), lambda: run.discard("kept")
    for turn in range(10**6):
        for change in changes:
            try:
                change()
            except RunFailed:
                print("lost", flush=True)
        if turn == 3:
            print("at work", flush=True)
        time.sleep(0.01)
"""


def test_a_halted_driver_that_wakes_after_another_took_the_run_changes_no_file(
    tiny_plan: MakePlan, tmp_path: Path
) -> None:
    second = RunDirectory(tmp_path)
    Ledger.begin(second, tiny_plan())
    command = [sys.executable, "-c", _DRIVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "at work\n"
        first.send_signal(signal.SIGSTOP)
        if _holds_the_lock(tmp_path):  # then none can take the run before it goes on
            first.kill()
            pytest.skip("halted in the midst of a write")
        with second.held(print, take_over=True):
            (tmp_path / "kept").mkdir()
            before = _tree(tmp_path)
            first.send_signal(signal.SIGCONT)
            for _ in range(6):
                assert first.stdout.readline() == "lost\n"
            assert _tree(tmp_path) == before
            first.kill()


def _holds_the_lock(run_dir: Path) -> bool:
    with (run_dir / ".owners" / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
