"""Ray's JobSubmissionClient in a process of its own, which has the token, and does as it is told on standard input.

The tests' own process never imports ray: it would fix how Ray authenticates there for every test after it.
"""

import json
import sys
from typing import Any

from ray_processes import ClusterSetting, ToldProcess

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class JobClient(ToldProcess):
    """The side of the test."""

    def __init__(self, setting: ClusterSetting, url: str) -> None:
        super().__init__(setting, __file__, url)

    def call(self, method: str, **arguments: Any) -> Any:
        """What a method of JobSubmissionClient returns, as JSON has it."""
        return json.loads(self.tell(json.dumps([method, arguments])))

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
