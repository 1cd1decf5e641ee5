"""Ray's JobSubmissionClient in a process of its own, which has the token, and does as it is told on standard input.

The tests' own process never imports ray: it would fix how Ray authenticates there for every test after it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ray_processes import ClusterSetting

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class JobClient:
    """The side of the test."""

    def __init__(self, setting: ClusterSetting, url: str) -> None:
        self._log = setting.folder / "client.log"
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), url],
            env=setting.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
        )

    def call(self, method: str, **arguments: Any) -> Any:
        """What a method of JobSubmissionClient returns, as JSON has it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("> "):
                return json.loads(line[2:])
        raise AssertionError(self._log.read_text())

    def status(self, job: str) -> str:
        """The job's status; one of ENDED at the end."""
        return str(self.call("get_job_status", job_id=job))

    def logs(self, job: str) -> str:
        """What the job has printed."""
        return str(self.call("get_job_logs", job_id=job))


def _serve(url: str) -> None:
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(url)
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(">", json.dumps(getattr(client, method)(**arguments), default=str), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
