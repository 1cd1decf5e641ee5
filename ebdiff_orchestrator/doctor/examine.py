"""The examination: ask every node, then every check."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ebdiff_orchestrator.cluster import NodeAnswer, cluster_address, connect
from ebdiff_orchestrator.doctor.facts import Node, NodeFacts, bytes_below, gather_facts, nearest_folder
from ebdiff_orchestrator.doctor.needs import (
    check_memory,
    check_room,
    check_run_space,
    check_shm,
    check_store_space,
    cluster_request,
    footprint,
    run_size,
)
from ebdiff_orchestrator.doctor.nodes import check_authentication, check_clocks, check_gpus, check_nodes, check_versions
from ebdiff_orchestrator.doctor.report import Examination, Finding
from ebdiff_orchestrator.doctor.storage import (
    StorageAnswer,
    StoreAnswer,
    cannot_reach,
    cannot_write,
    judge_storage,
    judge_store,
    look_at_storage,
    look_at_store,
    storage_test,
    store_test,
)
from ebdiff_orchestrator.plans.preview import preview_plan
from region_workers.data.sources import open_source
from region_workers.storage.places import cache_dir_of
from region_workers.storage.run_files import RunFiles, local_folder
from schemas.errors import UserError
from schemas.plan import DIGITS, Plan, WorkersPlan

_POLL_S = 2.0
THIS_MACHINE = "this machine"


class Machines(Protocol):
    """Nodes that run a function, once each."""

    def on_each_node(self, function: Callable[..., Any], *arguments: Any) -> list[NodeAnswer]:
        """What it returned on each."""


@dataclass(frozen=True)
class Question:
    """What is to be examined: for a plan or in general, a run directory or none, a cluster or this machine."""

    plan: Plan | None
    run_dir: str | None
    address: str | None
    expected_nodes: int | None
    wait_s: float


def examine(question: Question) -> Examination:
    """Ask the nodes of the cluster, or this machine if there is none, and judge. UserError if it cannot be joined."""
    with _machines(question) as machines:
        _wait_for_nodes(machines, question)
        nodes = _ask(machines, question.plan)
        findings = [
            *check_nodes(nodes, question.expected_nodes),
            *check_versions(nodes),
            *check_gpus(nodes),
            *check_authentication(nodes, cluster_address(question.address)),
            _ask_clocks(machines),
        ]
        if question.run_dir is not None:
            findings += _ask_storage(machines, question.run_dir)
        if question.plan is not None:
            findings += _check_plan(question.plan, nodes)
        if question.plan is not None and question.run_dir is not None:
            findings += _check_space(question.plan, question.run_dir, nodes)
    return Examination(tuple(nodes), tuple(findings))


class ThisMachine:
    """The one node of a run without a cluster."""

    def on_each_node(self, function: Callable[..., Any], *arguments: Any) -> list[NodeAnswer]:
        """The function's answer here."""
        return [NodeAnswer(THIS_MACHINE, {}, function(*arguments), None)]


@contextmanager
def _machines(question: Question) -> Iterator[Machines]:
    if cluster_address(question.address) is None:
        yield ThisMachine()
        return
    workers = question.plan.workers if question.plan else WorkersPlan()
    with connect(workers, 1, question.address) as cluster:
        yield cluster


def _wait_for_nodes(machines: Machines, question: Question) -> None:
    deadline = time.monotonic() + question.wait_s
    expected = question.expected_nodes or 0
    while len(machines.on_each_node(_time_of_day)) < expected and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _ask(machines: Machines, plan: Plan | None) -> list[Node]:
    answers = machines.on_each_node(gather_facts, plan.workers.cache_dir if plan else None)
    nodes = [_node(answer) for answer in answers]
    return [_as_embedded(node, plan) if node.name == THIS_MACHINE else node for node in nodes]


def _node(answer: NodeAnswer) -> Node:
    facts = NodeFacts.model_validate(answer.value) if answer.problem is None else None
    return Node(answer.node, answer.resources, facts, answer.problem)


def _as_embedded(node: Node, plan: Plan | None) -> Node:
    """What an embedded Ray will hand out: the GPUs that torch can use, and CPUs for all regions at once."""
    workers = plan.workers.processes * len(plan.regions) * plan.workers.cpus if plan else 0.0
    cpus = max(float(os.cpu_count() or 1), math.ceil(workers))
    return replace(node, resources={"CPU": cpus, "GPU": float(len(node.facts.gpus) if node.facts else 0)})


def _ask_clocks(machines: Machines) -> Finding:
    machines.on_each_node(_time_of_day)  # so that no process has to be started while clocks are compared
    before = time.time()
    answers = machines.on_each_node(_time_of_day)
    return check_clocks(before, time.time(), {a.node: a.value for a in answers if a.problem is None})


def _time_of_day() -> float:
    return time.time()


def _check_plan(plan: Plan, nodes: Sequence[Node]) -> list[Finding]:
    request = cluster_request(nodes, plan)
    need = footprint(plan, request.processes)
    return [
        check_room(nodes, plan),
        *check_memory(nodes, plan, request, need),
        check_shm(nodes, request, plan),
    ]


def _ask_storage(machines: Machines, run_dir: str) -> list[Finding]:
    folder = local_folder(run_dir)
    try:
        return _ask_folder(machines, folder) if folder else [_ask_store(machines, RunFiles(run_dir).location)]
    except (OSError, UserError) as error:
        return [cannot_write(run_dir, error) if folder else cannot_reach(error)]


def _ask_folder(machines: Machines, run_dir: Path) -> list[Finding]:
    with storage_test(run_dir) as test:
        said = machines.on_each_node(look_at_storage, str(test.folder), test.secret)
        answers = {a.node: StorageAnswer.model_validate(a.value) for a in said if a.problem is None}
        seen = {node: test.sees(answer) for node, answer in answers.items()}
    return judge_storage(run_dir, answers, seen)


def _ask_store(machines: Machines, url: str) -> Finding:
    with store_test(url) as test:
        said = machines.on_each_node(look_at_store, test.url, test.secret)
        answers = {a.node: StoreAnswer.model_validate(a.value) for a in said if a.problem is None}
        seen = {node: test.sees(answer) for node, answer in answers.items()}
    return judge_store(url, answers, seen)


def _check_space(plan: Plan, run_dir: str, nodes: Sequence[Node]) -> list[Finding]:
    """What is in an object store is also in the cache of the driver's machine, as far as it has come."""
    needed = run_size(preview_plan(plan), _images(plan))
    own = local_folder(run_dir)
    folder = own or cache_dir_of()
    free, there = shutil.disk_usage(nearest_folder(folder)).free, bytes_below(own) if own else 0
    return [check_run_space(needed, free, there, str(folder)), check_store_space(needed, nodes)]


def _images(plan: Plan) -> int | None:
    """The number of images, where it can be told without reading them or asking a hub."""
    path = Path(plan.data.path).expanduser()
    if plan.data.path != DIGITS and not path.exists():
        return None
    return open_source(plan.data, cache_dir_of()).count()
