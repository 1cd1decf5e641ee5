"""The Ray that a run starts for itself: who can talk to it, what it leaves, and a job that is given up."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MakeJobs, MakePlan
from processes import processes_with

from region_workers.data.store import ensure_store

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
LISTENS = "0A"
PROGRAM = """
import signal, sys, time
from pathlib import Path
from ebdiff_orchestrator.cluster.connecting import connect
from ebdiff_orchestrator.cluster.executor import run_one
from schemas.errors import UserError
from schemas.job import WorkerJob
from schemas.plan import WorkersPlan

def refuse(value):
    raise UserError(f"value={value}")

job = WorkerJob.model_validate_json(Path(sys.argv[1]).read_text())
with connect(WorkersPlan(), 2) as cluster:
    signal.signal(signal.SIGTERM, lambda *_: None)
    future = cluster.run_job(job, 1)
    started = Path(job.run_dir) / job.stages()[0] / "progress.json"
    while not started.exists():
        assert not future.done(), future.exception()
        time.sleep(0.1)
    print("at work", flush=True)
    input()
    cluster.cancel(job.name)
    print(cluster.loss(future.exception(timeout=60)), flush=True)
    deadline = time.monotonic() + 30
    while cluster.free_workers() < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    print(cluster.free_workers(), flush=True)
    many = cluster.run_job(job, 3)  # for which there is no room
    from ray.util import placement_group_table

    def pending():
        return sum(group["state"] == "PENDING" for group in placement_group_table().values())

    while not pending():
        assert not many.done(), many.exception()
        time.sleep(0.2)
    cluster.cancel(job.name)
    print(type(many.exception(timeout=60)).__name__, pending(), flush=True)
    try:
        run_one(cluster, refuse, 7)
    except UserError as error:
        print(error, flush=True)
    cluster.run_job(job, 2).result(timeout=300)
    print(*sorted(path.parent.name for path in Path(job.run_dir).glob("*/*/result.json")))
"""


def _listening(pids: list[int]) -> set[str]:
    """The addresses, as the kernel writes them, at which these processes take connections."""
    sockets = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            sockets.add(str(file.readlink()) if file.is_symlink() else "")
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == LISTENS and f"socket:[{row[9]}]" in sockets}


@pytest.mark.slow
def test_an_embedded_ray_is_for_its_user_alone_and_jobs_of_one_and_several_workers_end_when_cancelled(
    tiny_plan: MakePlan, make_jobs: MakeJobs, cache_dir: Path, tmp_path: Path
) -> None:
    plan = tiny_plan(f"workers.cache_dir={tmp_path / 'cache'}")
    job = make_jobs(plan, tmp_path / "run")[0]
    job_file = tmp_path / "job.json"
    job_file.write_text(job.model_dump_json())
    lock = tmp_path / "cache/images" / f"{ensure_store(plan.data, cache_dir).folder.name}.lock"
    lock.parent.mkdir(parents=True)
    place = Path(f"/tmp/t{os.getpid()}")  # short: the names of sockets below it are limited
    place.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", PROGRAM, str(job_file)]
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # the worker waits for it
        with subprocess.Popen(
            command,
            env=kept | {"RAY_TMPDIR": str(place)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "at work\n"
            found = processes_with("RAY_TMPDIR", str(place))
            addresses = _listening(list(found))
            (folder,) = place.iterdir()
            mode = folder.stat().st_mode & 0o777
            os.killpg(process.pid, signal.SIGTERM)  # as `timeout` does: none of Ray's ends of it
            fcntl.flock(held, fcntl.LOCK_UN)
            said, errors = process.communicate("\n", timeout=400)
    assert addresses
    assert addresses <= LOOPBACK
    assert mode == 0o700
    region = job.stages()[0].split("/")[1]
    assert said.split() == ["died", "2", "ActorDiedError", "0", "value=7", region, region], errors
    assert not any("RayTrainWorker" in line or "dashboard.py" in line for line in found.values())
    assert not errors
    assert not list(place.iterdir()), "its folder is gone"
    place.rmdir()
