"""What jobs ask of a cluster, and how many of them its nodes hold."""

import socket

import pytest

from ebdiff_orchestrator.cluster.connecting import connect
from ebdiff_orchestrator.cluster.executor import Request, request_of, workers_on_node
from schemas.errors import UserError
from schemas.plan import WorkersPlan


@pytest.mark.parametrize(
    ("workers", "gpus_in_cluster", "expected"),
    [
        ({}, 0.0, Request(processes=1, cpus=1.0, gpus=0.0)),
        ({}, 8.0, Request(processes=1, cpus=1.0, gpus=1.0)),
        ({"gpus": 0.5}, 1.0, Request(processes=1, cpus=1.0, gpus=0.5)),
        ({"gpus": 2, "cpus": 4}, 8.0, Request(processes=2, cpus=4.0, gpus=1.0)),
        ({"gpus": 0, "processes": 2}, 8.0, Request(processes=2, cpus=1.0, gpus=0.0)),
    ],
)
def test_a_region_asks_for_what_the_plan_says(
    workers: dict[str, float], gpus_in_cluster: float, expected: Request
) -> None:
    assert request_of(WorkersPlan.model_validate(workers), gpus_in_cluster) == expected


@pytest.mark.parametrize(
    ("gpus", "node", "fit"),
    [
        (0.6, {"CPU": 16, "GPU": 2}, 2),  # two parts of 0.6 do not fit on one device
        (0.5, {"CPU": 16, "GPU": 2}, 4),
        (0.5, {"CPU": 3, "GPU": 2}, 3),
        (1.0, {"CPU": 16}, 0),
        (0.0, {"CPU": 3}, 3),
    ],
)
def test_a_node_holds_as_many_workers_as_its_devices_and_cores_allow(
    gpus: float, node: dict[str, float], fit: int
) -> None:
    assert workers_on_node(Request(processes=1, cpus=1.0, gpus=gpus), node) == fit


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "no-such-host.invalid:{}", "127.0.0.1:99999"])
def test_an_address_at_which_nothing_listens_is_refused_at_once(form: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = form.format(silent.getsockname()[1])
        with pytest.raises(UserError, match=f"Ray at {address}: cannot connect"), connect(WorkersPlan(), 1, address):
            pass
