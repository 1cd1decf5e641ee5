"""The Slurm script, run as it is with stand-ins for Slurm's commands, Ray's and this project's own."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from processes import wait_until

from ebdiff_orchestrator.cli.app import app as cli

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "ebdiff.sbatch"
STAND_INS = {
    "scontrol": 'case "$1" in show) printf "node1\\nnode2\\n" ;; esac',
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "hostname": 'case "$1" in --ip-address) echo "${OWN_NAME:-10.0.0.1 fe80::1}" ;; *) echo "::1 10.0.0.7" ;; esac',
    "sleep": "",
    "ray": 'case "$1" in health-check) exit "${HEAD_IS_DOWN:-0}" ;; esac',
    "ebdiff": """
case "$1" in
  doctor) exit "${DOCTOR_FINDS:-0}" ;;
  launch)
    trap 'echo "launch saves and stops" >> "$CALLS"; exit 130' TERM
    echo "token $(stat -c %a "$RAY_AUTH_TOKEN_PATH") $(wc -c < "$RAY_AUTH_TOKEN_PATH") $RAY_AUTH_MODE" >> "$CALLS"
    until [[ ! -e $BUSY && $(grep -c "^ray start" "$CALLS") -ge 2 ]]; do "$REAL_SLEEP" 0.02; done
    exit "${LAUNCH_ENDS:-0}" ;;
esac""",
}


@dataclass(frozen=True)
class Slurm:
    """A job of two nodes. `calls`: of the stand-ins. `launch` works while the file `busy` is there."""

    folder: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def busy(self) -> Path:
        return self.folder / "busy"

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            env=self.environment | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **changes: str) -> tuple[int, str]:
        process = self.start(*arguments, **changes)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def called(self, start: str) -> list[str]:
        return [call for call in self.calls if call.startswith(start)]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in STAND_INS.items():
        file = commands / name
        file.write_text(f'#!/bin/bash\necho "{name} $*" >> "$CALLS"\n{body}\n')
        file.chmod(0o755)
    environment = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "CALLS": str(tmp_path / "calls"),
        "BUSY": str(tmp_path / "busy"),
        "REAL_SLEEP": shutil.which("sleep") or "sleep",
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "2",
    }
    slurm = Slurm(tmp_path, environment)
    yield slurm
    for process in slurm.started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_ray_starts_on_every_node_and_the_run_is_launched_after_the_doctor(slurm: Slurm) -> None:
    code, output = slurm.run("cifar10", "/shared/run", "--set", "seed=1")
    assert code == 0, output
    head = "ray start --head --block --include-dashboard=false --temp-dir=/tmp/ray-4242"
    assert slurm.called(head) == [f"{head} --node-ip-address=10.0.0.1 --port=24242 --num-cpus=8 --num-gpus=2"]
    assert slurm.called("ray start --block") == ["ray start --block --address=10.0.0.1:24242 --num-cpus=8 --num-gpus=2"]
    asked = "cifar10 --run-dir /shared/run"
    assert slurm.called("ebdiff") == [
        f"ebdiff doctor {asked} --nodes 2 --wait 300 --set seed=1",
        f"ebdiff launch {asked} --set seed=1",
    ]
    assert not slurm.called("scontrol requeue")


def test_the_token_is_the_job_s_own_readable_by_its_user_alone_and_removed_at_the_end(slurm: Slurm) -> None:
    tokens = slurm.folder / "home" / ".ebdiff"
    slurm.run("digits", "/shared/run")
    assert slurm.called("token") == ["token 600 64 token"]
    assert list(tokens.iterdir()) == []


def test_the_head_is_reached_by_an_address_that_other_nodes_know(slurm: Slurm) -> None:
    slurm.run("digits", "/shared/run", OWN_NAME="127.0.1.1")
    assert slurm.called("ray start --block") == ["ray start --block --address=10.0.0.7:24242 --num-cpus=8 --num-gpus=2"]


@pytest.mark.parametrize(
    ("number", "queued_again"),
    [(signal.SIGUSR1, ["scontrol requeue 4242"]), (signal.SIGTERM, [])],
    ids=["near its end in time", "cancelled"],
)
def test_a_run_that_is_stopped_saves_and_queues_again_unless_it_was_cancelled(
    slurm: Slurm, number: signal.Signals, queued_again: list[str]
) -> None:
    slurm.busy.touch()
    process = slurm.start("digits", "/shared/run")
    wait_until(lambda: slurm.called("token"), "the launch")
    time.sleep(0.2)
    process.send_signal(number)  # to the script alone, as --signal=B:USR1 does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    saved = slurm.calls.index("launch saves and stops")
    assert slurm.calls[saved + 1 :] == queued_again


def test_a_run_that_fails_is_not_queued_again(slurm: Slurm) -> None:
    code, _ = slurm.run("digits", "/shared/run", LAUNCH_ENDS="1")
    assert code == 1
    assert not slurm.called("scontrol requeue")


def test_what_the_doctor_finds_stops_the_job_unless_told_otherwise(slurm: Slurm) -> None:
    assert slurm.run("digits", "/shared/run", DOCTOR_FINDS="1")[0] == 1
    assert not slurm.called("ebdiff launch")
    assert slurm.run("digits", "/shared/run", DOCTOR_FINDS="1", EBDIFF_IGNORE_DOCTOR="yes")[0] == 0
    assert slurm.called("ebdiff launch")


def test_a_head_that_does_not_answer_is_not_waited_for_for_ever(slurm: Slurm) -> None:
    code, output = slurm.run("digits", "/shared/run", HEAD_IS_DOWN="1", EBDIFF_HEAD_ATTEMPTS="3")
    assert code == 1
    assert "head on node1 did not answer" in output
    assert len(slurm.called("ray health-check")) == 3
    assert not slurm.called("ebdiff")


@pytest.mark.parametrize("arguments", [[], ["digits"], ["digits", "--set"]])
def test_a_wrong_call_says_how(slurm: Slurm, arguments: list[str]) -> None:
    code, output = slurm.run(*arguments)
    assert code == 2
    assert "usage: sbatch" in output
    assert slurm.calls == []


def test_slurm_warns_in_time_and_may_queue_the_job_again() -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.M))
    assert asked["signal"] == "B:USR1@300"
    assert {"requeue", "exclusive"} <= asked.keys()
    assert asked["ntasks-per-node"] == "1"


def test_the_script_calls_commands_that_there_are() -> None:
    commands = {command.callback.__name__ for command in cli.registered_commands if command.callback}
    called = set(re.findall(r"\bebdiff (doctor|launch)\b", SCRIPT.read_text()))
    assert called == {"doctor", "launch"} <= commands
