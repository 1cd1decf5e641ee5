"""The embedded Ray where it is slow or another version, and its folder; with Ray itself: tests/integration."""

import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from processes import process_of

from ebdiff_orchestrator.cluster import embedded
from ebdiff_orchestrator.cluster.connecting import connect
from region_workers.storage.locks import OwnFolder
from schemas.errors import RunFailed
from schemas.plan import WorkersPlan

LAUNCH = """
import os, signal, time
from ebdiff_orchestrator.cluster import embedded
def start(*_):
    if os.environ.get("INTERRUPTED"):
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(600)
embedded._start = start
from ebdiff_orchestrator.cli.app import main
main()
"""
KILLED = """
import sys
from pathlib import Path
from region_workers.storage.locks import OwnFolder
with OwnFolder(Path(sys.argv[1]), "eb-") as folder:
    (folder.path / "r").mkdir()
    print(folder.path, flush=True)
    input()
"""
FIRST_LINE_CPU_S = 2.0


def test_the_first_line_of_a_launch_waits_neither_for_ray_nor_for_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LAUNCH, "launch", "digits", "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        used_s = process_of(process.pid).cpu_s
        process.kill()
    assert "digits: launching in" in line
    assert used_s < FIRST_LINE_CPU_S, "of the processor, which says the same however busy the machine is"


@pytest.mark.parametrize(
    ("place", "interrupted", "code", "told"), [("a file", "", 2, "a file"), ("run", "yes", 130, "interrupted")]
)
def test_a_launch_that_ends_early_does_not_wait_for_its_ray(
    place: str, interrupted: str, code: int, told: str, tmp_path: Path
) -> None:
    (tmp_path / "a file").touch()
    command = [sys.executable, "-c", LAUNCH, "launch", "digits", "--run-dir", str(tmp_path / place)]
    environment = {**os.environ, "INTERRUPTED": interrupted}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (result.returncode, "Traceback" in result.stderr) == (code, False), result.stderr
    assert told in result.stderr


def test_who_waits_for_ray_is_told_and_after_a_limit_it_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go_on, said = threading.Event(), list[str]()

    def start(*_: object) -> None:
        logging.getLogger("ray").error("a line of Ray's")
        go_on.wait(60)

    for name, value in {"_start": start, "_LOOK_S": 0.05, "_QUIET_S": 0.1, "_START_LIMIT_S": 0.6}.items():
        monkeypatch.setattr(embedded, name, value)
    monkeypatch.setattr(embedded, "_temp_dir", lambda: tmp_path)
    monkeypatch.setattr(embedded.EmbeddedRay, "begun", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in (*embedded._ENVIRONMENT, *embedded.WORKER_ENVIRONMENT, "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # set by the start otherwise, for all tests to come
    embedded.log_ray_to(tmp_path / "of an earlier run.log")
    context = connect(WorkersPlan(), 1, log=tmp_path / "ray.log", say=said.append)
    with pytest.raises(RunFailed, match="did not start on this machine within 1 s: other programs"):
        context.__enter__()
    go_on.set()
    assert re.fullmatch(r"waiting for Ray to start on this machine \(\d+ s so far, at most 1 s\)", said[0])
    assert (tmp_path / "ray.log").read_text() == "a line of Ray's\n"


def test_a_machine_too_busy_for_ray_is_told_of_in_our_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for limit in ("maximum_startup_concurrency", "register_timeout_seconds"):
        monkeypatch.setenv(f"RAY_worker_{limit}", "1")  # set by the start otherwise
    monkeypatch.setenv("RAY_prestart_worker_first_driver", "1")
    starts = []

    def init(*_: object, **__: object) -> None:
        starts.append("The current node timed out during startup.")
        raise Exception(starts[-1])

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(RunFailed, match=r"did not start on this machine in 3 attempts.*other programs"):
        embedded._start(WorkersPlan(), 1, str(tmp_path))
    assert len(starts) == 3


def test_a_ray_without_what_is_replaced_starts_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    node = pytest.importorskip("ray._private.node").Node
    kept = node.start_monitor
    monkeypatch.delattr(node, "start_log_monitor")
    with embedded._started_our_way():
        assert node.start_monitor is not kept
        assert not hasattr(node, "start_log_monitor")
    assert node.start_monitor is kept
    monkeypatch.setitem(sys.modules, "ray._private.node", None)
    with embedded._started_our_way():
        assert node.start_monitor is kept


def test_the_folder_of_a_killed_driver_is_cleared_by_the_next_and_nobody_elses(tmp_path: Path) -> None:
    for name in ("eb-somebody", "eb-12345678"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        killed = Path(process.stdout.readline().strip())
        with OwnFolder(tmp_path, embedded.FOLDER_PREFIX) as folder:
            assert killed.is_dir(), "its driver lives"
            assert folder.path.stat().st_mode & 0o777 == 0o700
        process.kill()
    with OwnFolder(tmp_path, embedded.FOLDER_PREFIX):
        assert not killed.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eb-12345678", "eb-somebody"]


@pytest.mark.parametrize(
    "program", [("ebdiff_orchestrator.cli.app", "main"), ("region_workers.__main__", "main")], ids=lambda each: each[0]
)
def test_our_own_processes_wait_passively_before_torch_is_there(program: tuple[str, str]) -> None:
    module, function = program
    code = f"""
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
sys.argv = ["program", *sys.argv[1:]]
from {module} import {function}
{function}()
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    arguments = ["doctor"] if "cli" in module else ["nothing.json"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "passive\n", result.stderr
