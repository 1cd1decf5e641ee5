"""What jobs ask of a cluster, how many of them its nodes hold, and nodes that are lost or do not answer."""

import re
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from ebdiff_orchestrator.cluster.connecting import connect
from ebdiff_orchestrator.cluster.executor import Request, request_of, run_one, workers_on_node
from ebdiff_orchestrator.cluster.ray_executor import RayExecutor
from schemas.errors import RunFailed, UserError
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


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tasks that were cancelled in a Ray whose only node is lost as soon as tasks are waited for."""
    node = {"Alive": True, "NodeID": 56 * "a", "NodeManagerAddress": "10.0.0.7", "Resources": {"CPU": 1.0}}
    cancelled: list[Any] = []

    def wait(tasks: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        node["Alive"] = False
        return [], tasks

    task = SimpleNamespace(remote=lambda *_: object(), options=lambda **_: task)
    instead = {
        "nodes": lambda: [node],
        "available_resources": lambda: {"CPU": 1.0},
        "cluster_resources": lambda: {"CPU": 1.0},
        "remote": lambda **_: lambda function: task,
        "wait": wait,
        "cancel": lambda task, force: cancelled.append(task),
    }
    for name, function in instead.items():
        monkeypatch.setattr(ray, name, function)
    return cancelled


def test_calls_whose_nodes_are_all_lost_wait_for_others_no_longer_than_the_limit(cancelled: list[Any]) -> None:
    cluster = RayExecutor(False, Request(1, 1.0, 0.0), wait_limit_s=0.5)
    with pytest.raises(RunFailed, match=r"workers\.wait_limit_s = 0 s"):
        list(cluster.run_many(int, [(1,), (2,)]))
    assert len(cancelled) == 2


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (RuntimeError("no memory"), "A worker failed (CUDA out of memory.). The same command goes on"),
        (RunFailed("for people"), "for people"),
    ],
)
def test_what_breaks_a_call_is_one_line_for_people(
    cancelled: list[Any], monkeypatch: pytest.MonkeyPatch, cause: Exception, told: str
) -> None:
    def fail(task: object) -> None:
        raise RayTaskError("f", "a traceback\nCUDA out of memory. ", cause)

    monkeypatch.setattr(ray, "wait", lambda tasks, **_: (tasks, []))
    monkeypatch.setattr(ray, "get", fail)
    with pytest.raises(RunFailed, match=re.escape(told)):
        run_one(RayExecutor(False, Request(1, 1.0, 0.0)), int)


def test_what_a_node_has_not_answered_in_time_is_cancelled(cancelled: list[Any]) -> None:
    (answer,) = RayExecutor(False, Request(1, 1.0, 0.0)).on_each_node(int)
    assert (answer.node, answer.problem) == ("10.0.0.7 (aaaaaa)", "no answer within 180 s")
    assert len(cancelled) == 1
