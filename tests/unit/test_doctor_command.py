"""`ebdiff doctor` as it is typed: on this machine, and on a cluster of nodes that are made up."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from ebdiff_orchestrator.cli.app import app
from ebdiff_orchestrator.cluster.executor import NodeAnswer
from ebdiff_orchestrator.doctor import examine
from ebdiff_orchestrator.doctor.facts import gather_facts
from ebdiff_orchestrator.doctor.needs import run_bytes
from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.plans.preview import preview_plan


class TwoNodes:
    """Two nodes, both this machine; `late`: how often the second one is not there yet; `more`: it tells of itself."""

    def __init__(self, late: int = 0, broken: str | None = None, more: dict[str, Any] | None = None) -> None:
        self.late, self.broken, self.more = late, broken, more

    def on_each_node(self, function: Callable[..., Any], *arguments: Any) -> list[NodeAnswer]:
        resources = {"CPU": 4.0}
        nodes = [NodeAnswer("10.0.0.1 (aaa)", resources, function(*arguments), None)]
        if self.late:
            self.late -= 1
        else:
            value = None if self.broken else function(*arguments)
            if self.more and function is gather_facts:
                value |= self.more
            nodes.append(NodeAnswer("10.0.0.2 (bbb)", resources, value, self.broken))
        return nodes


@pytest.fixture(autouse=True)
def ray_s_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> Path:
    """A token that is kept as it should be."""
    token = tmp_path / "token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return token


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[[TwoNodes], None]:
    """Joins the nodes given instead of a cluster."""

    def use(nodes: TwoNodes) -> None:
        @contextmanager
        def connect(*_: Any, **__: Any) -> Iterator[TwoNodes]:
            yield nodes

        monkeypatch.setattr(examine, "connect", connect)
        monkeypatch.setattr(examine, "_POLL_S", 0.01)

    return use


def doctor(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *map(str, arguments)], catch_exceptions=True)
    if isinstance(result.exception, ValueError):
        raise result.exception
    return result.exit_code, result.output


def test_a_machine_in_order_is_told_so_and_nothing_stays_behind(tmp_path: Path) -> None:
    code, output = doctor("digits", "--run-dir", tmp_path / "runs" / "digits")
    assert code == 0, output
    assert "all fine" in output
    assert not (tmp_path / "runs").exists()


def test_a_run_and_its_data_that_fit_a_disk_but_not_together_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = run_bytes(preview_plan(load_plan("digits"))) + 1000  # the decoded digits are 115,008 bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free, total=10 * free))
    monkeypatch.setenv("EBDIFF_CACHE", str(tmp_path / "cache"))
    code, output = doctor("digits", "--run-dir", tmp_path / "run", "--json")
    findings = [found for found in json.loads(output)["findings"] if found["check"] == "free space"]
    assert (code, [found["status"] for found in findings]) == (1, ["wrong", "fine"])
    assert "the decoded data on the same disk 0.00 GB, and" in findings[0]["what"]


def test_without_a_plan_the_machine_alone_is_checked() -> None:
    code, output = doctor("--json")
    report = json.loads(output)
    assert code == 0
    assert report["fine"] is True
    assert {finding["check"] for finding in report["findings"]} >= {"versions", "GPUs", "authentication"}
    assert report["nodes"][0]["facts"]["versions"]["ray"]


def test_what_is_wrong_comes_with_its_remedy_and_exit_1(ray_s_token: Path) -> None:
    ray_s_token.chmod(0o644)
    code, output = doctor()
    assert code == 1
    assert "mode 0644" in output
    assert "chmod 600" in output
    assert "1 of" in output.splitlines()[-1]


def test_a_cluster_is_asked_node_by_node(cluster: Callable[[TwoNodes], None], tmp_path: Path) -> None:
    cluster(TwoNodes())
    code, output = doctor("digits", "--run-dir", tmp_path / "run", "--address", "10.0.0.1:6379", "--json")
    report = json.loads(output)
    assert code == 0, output
    assert [node["name"] for node in report["nodes"]] == ["10.0.0.1 (aaa)", "10.0.0.2 (bbb)"]
    assert {"shared storage", "files", "locks", "free space", "room", "memory"} <= {
        finding["check"] for finding in report["findings"]
    }


def test_nodes_that_come_late_are_waited_for_and_those_that_do_not_come_are_missed(
    cluster: Callable[[TwoNodes], None],
) -> None:
    cluster(TwoNodes(late=3))
    assert doctor("--address", "10.0.0.1:6379", "--nodes", "2", "--wait", "30")[0] == 0
    cluster(TwoNodes())
    code, output = doctor("--address", "10.0.0.1:6379", "--nodes", "3", "--wait", "0.1", "--json")
    assert code == 1
    assert "2 of 3 nodes have joined" in output


@pytest.mark.parametrize(
    "two", [TwoNodes(broken="ModuleNotFoundError: No module named 'schemas'"), TwoNodes(more={"of another version": 1})]
)
def test_a_node_that_cannot_run_the_check_does_not_stop_the_others(
    two: TwoNodes, cluster: Callable[[TwoNodes], None], tmp_path: Path
) -> None:
    cluster(two)
    code, output = doctor("digits", "--run-dir", tmp_path / "run", "--address", "10.0.0.1:6379", "--json")
    assert code == 1
    findings = json.loads(output)["findings"]
    assert [finding["check"] for finding in findings if finding["status"] == "wrong"] == ["nodes"]
    assert "Install the same version" in output


def test_a_run_directory_that_cannot_be_made_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, output = doctor("digits", "--run-dir", tmp_path / "file" / "run", "--json")
    assert code == 1
    assert [f["check"] for f in json.loads(output)["findings"] if f["status"] == "wrong"] == ["files"]
