"""A run as a Ray job: submitted with the project as its working directory, watched, stopped, and finished as a study's.

That study is killed as a job and goes on with a Ray of its own. And without the token: nothing is told, nothing runs.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import yaml
from forked import run_forked
from job_client import ENDED, JobClient
from processes import free_port, wait_until
from ray_processes import BIN, ClusterSetting, cluster_setting, run_in

from ebdiff_orchestrator import load_ensemble
from ebdiff_orchestrator.run.run_table import read_status

ROOT = Path(__file__).resolve().parents[2]
EXCLUDES = ["/tests/", "/docs/", "runs", "*.parquet", ".mypy_cache", ".ruff_cache", ".pytest_cache"]
MOST_BYTES = 10 << 20
PLAN = {
    "regions": "[{train: [0, 1000], pruning_ratio: 0.5, name: all}]",
    "model": "{block_out_channels: [16, 32], layers_per_block: 1, norm_num_groups: 4, dropout: 0.1}",
    "draw": "{interval_steps: 2, max_intervals: 30, threshold: 0.5}",
    "training": "{steps: 500, batch_size: 8, learning_rate: 0.001, ema_decay: 0.99}",
    "sampling": "{steps: 4, num_images: 4}",
    "checkpointing": "{interval_steps: 100000}",
    "logging": "{interval_steps: 2}",
}
LAUNCH = "ebdiff launch digits " + " ".join(f"--set '{key}={value}'" for key, value in PLAN.items())
STAGE = "train/all"
SETTINGS = [f"{key}={value}" for key, value in PLAN.items()] + ["workers.cpus=2"]  # one worker at a time
STUDY = {
    "name": "two",
    "seeds": 1,
    "set": SETTINGS,
    "rows": [
        {"label": "first", "plan": "digits"},
        {
            "label": "second",
            "plan": "digits",
            "set": ["draw.method=slim", "training.steps=250", "checkpointing.interval_steps=20"],
        },
    ],
    "evaluate": None,
}


@dataclass(frozen=True)
class Head:
    """A Ray head with a dashboard, and a client that has the token."""

    setting: ClusterSetting
    url: str
    address: str
    client: JobClient

    def wait(self, job: str) -> str:
        try:
            wait_until(lambda: self.client.status(job) in ENDED, f"the job {job} to end")
        finally:
            print(self.client.logs(job))  # shown if the test fails
        return self.client.status(job)


@pytest.fixture(scope="module")
def head(cache_dir: Path) -> Iterator[Head]:
    with cluster_setting(cache_dir) as setting:
        port, dashboard = free_port(), free_port()
        options = {
            "port": port,
            "dashboard-port": dashboard,
            "dashboard-host": "127.0.0.1",
            "dashboard-agent-listen-port": free_port(),
            "ray-client-server-port": free_port(),
            "node-ip-address": "127.0.0.1",
            "num-cpus": 2,
        }
        log = (setting.folder / "head.log").open("w")
        words = [f"--{name}={value}" for name, value in options.items()]
        started = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", *words],
            env=setting.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        url = f"http://127.0.0.1:{dashboard}"
        token = {"Authorization": f"Bearer {setting.token_file.read_text()}"}

        def answers() -> bool:
            assert started.poll() is None, Path(log.name).read_text()
            try:
                return requests.get(f"{url}/api/version", headers=token, timeout=5).ok
            except requests.ConnectionError:
                return False

        wait_until(answers, "Ray's dashboard")
        yield Head(setting, url, f"127.0.0.1:{port}", JobClient(setting, url))


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared") / "two"


def _submit(head: Head, entrypoint: str, job: str) -> None:
    head.client.call(
        "submit_job",
        entrypoint=entrypoint,
        submission_id=job,
        runtime_env={"working_dir": str(ROOT), "excludes": EXCLUDES},
    )


@pytest.mark.slow
def test_without_the_token_nothing_is_told_and_nothing_runs(head: Head, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    job = {"entrypoint": f"touch {touched}"}
    assert requests.post(f"{head.url}/api/jobs/", json=job, timeout=30).status_code == 401
    wrong = {"Authorization": f"Bearer {'0' * 64}"}
    assert requests.post(f"{head.url}/api/jobs/", json=job, headers=wrong, timeout=30).status_code == 403
    assert requests.get(f"{head.url}/api/jobs/", timeout=30).status_code == 401

    launch = ("ebdiff", "launch", "digits", "--address", head.address, "--run-dir", tmp_path / "run")
    refused = run_forked(*launch, env=head.setting.stranger)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "RAY_AUTH_MODE and the token" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert head.client.call("list_jobs") == []
    assert not touched.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_doctor_as_a_job_sees_the_uploaded_copy_of_the_project(head: Head, tmp_path: Path) -> None:
    runtime_env = json.dumps({"excludes": EXCLUDES})
    submit = ["ray", "job", "submit", "--address", head.url, "--submission-id", "doctor", "--working-dir", ROOT]
    entrypoint = ["ebdiff", "doctor", "digits", "--run-dir", tmp_path / "run", "--nodes", "1", "--json"]
    result = run_in(head.setting.environment, *submit, "--runtime-env-json", runtime_env, "--", *entrypoint)
    assert result.returncode == 0, result.stdout + result.stderr
    logs = head.client.logs("doctor")
    report = json.loads(logs[logs.index("{") : logs.rindex("}") + 1])
    assert report["fine"] is True
    (node,) = report["nodes"]
    copy = Path(node["facts"]["code_folder"])
    assert copy.is_relative_to(head.setting.folder / "ray")
    assert (copy / "ebdiff_orchestrator" / "cli" / "app.py").is_file()
    assert not (copy / ".git").exists()
    assert not (copy / "tests").exists()
    size = sum(file.stat().st_size for file in copy.rglob("*") if file.is_file())
    assert size < MOST_BYTES


@pytest.mark.slow
def test_a_run_is_watched_stopped_and_finished_in_a_study_that_is_killed_and_goes_on(
    head: Head, study_dir: Path, tmp_path: Path
) -> None:
    run_dir, other_dir = study_dir / "first-s0", study_dir / "second-s0"
    _submit(head, f"{LAUNCH} --run-dir {run_dir}", "first")
    wait_until(lambda: _has_begun(head, "first", run_dir), "the job to begin its run")
    watch = [BIN / "ebdiff", "status", run_dir, "--watch"]  # until the run is finished, by whichever job
    watcher = subprocess.Popen(watch, env=head.setting.environment, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: _steps(head, "first", run_dir) >= 20, "the job to train")

    assert head.client.call("stop_job", job_id="first")
    assert head.wait("first") == "STOPPED"
    logs = head.client.logs("first")
    assert "Stopped. Go on with: ebdiff resume" in logs
    (saved,) = (run_dir / STAGE / "checkpoints").glob("step-*")  # made by the stop: the interval is longer than the run
    step = int(saved.name.removeprefix("step-"))
    assert 20 <= step < 500
    assert not read_status(run_dir).manifest.finished()

    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    _submit(head, f"ebdiff study {file} --study-dir {study_dir}", "second")
    wait_until(lambda: read_status(run_dir).manifest.stage(STAGE).status == "done", "the study to train its first run")
    wait_until(lambda: _steps(head, "second", other_dir) > 40, "the study to train its second run")
    (driver,) = (pid for pid, words in head.setting.processes().items() if "/ebdiff study" in words)
    os.kill(driver, signal.SIGKILL)
    assert head.wait("second") == "FAILED"
    record = read_status(run_dir).manifest.stage(STAGE)
    assert record.status == "done"
    assert record.attempts == 2

    result = run_forked("ebdiff", "study", study_dir, env=head.setting.stranger)  # with a Ray of its own
    assert result.returncode == 0, result.stdout + result.stderr
    assert read_status(run_dir).manifest.stage(STAGE) == record
    status = read_status(other_dir)
    assert status.manifest.finished()
    assert status.progress[STAGE].first_step >= 40
    table = [line.split() for line in result.stdout.splitlines()]
    assert {words[0] for words in table if "1/1" in words} == {"first", "second"}
    assert (study_dir / "report.html").is_file()
    watched, _ = watcher.communicate(timeout=60)
    assert watcher.returncode == 0
    assert watched.count(f"\n{STAGE}") > 1
    images = load_ensemble(run_dir)(batch_size=2).images
    assert len(images) == 2


def _has_begun(head: Head, job: str, run_dir: Path) -> bool:
    assert head.client.status(job) not in ENDED, head.client.logs(job)
    return (run_dir / "manifest.json").is_file()


def _steps(head: Head, job: str, run_dir: Path) -> int:
    """Of the training at work."""
    progress = read_status(run_dir).progress.get(STAGE) if _has_begun(head, job, run_dir) else None
    return progress.step if progress is not None and progress.state == "running" else 0
