"""What `ebdiff doctor` finds wrong on nodes that are made up, and what it finds fine."""

from pathlib import Path
from typing import Any

import pytest
from conftest import MakePlan

from ebdiff_orchestrator.cluster.executor import THIS_MACHINE, Request
from ebdiff_orchestrator.doctor import facts
from ebdiff_orchestrator.doctor.examine import (
    MINIMUM_RAY,
    check_authentication,
    check_clocks,
    check_gpus,
    check_nodes,
    check_versions,
)
from ebdiff_orchestrator.doctor.facts import OUR_CODE, Finding, Gpu, Node, NodeFacts, gather_facts
from ebdiff_orchestrator.doctor.needs import (
    Footprint,
    check_memory,
    check_room,
    check_run_space,
    check_shm,
    check_store_space,
)

GIB = 2**30
VERSIONS = {"python": "3.11.9", "torch": "2.15.0", "ray": "2.60.0", "diffusers": "0.42.1", "ebdiff-orchestrator": "1.0"}
FACTS = NodeFacts(
    versions={**VERSIONS, OUR_CODE: "abc"},
    code_folder="/opt/ebdiff",
    gpus=(Gpu(name="A GPU", memory_bytes=40 * GIB),),
    cuda_problem=None,
    memory_bytes=64 * GIB,
    shm_bytes=8 * GIB,
    auth_mode="token",
    token_file="~/.ray/auth_token",
    token_mode=0o600,
    cache_dir="/cache",
    cache_free_bytes=100 * GIB,
    cache_used_bytes=0,
)
SMALL = Footprint(params=10, state_bytes=GIB, activation_bytes=GIB)
ONE_GPU = Request(processes=1, cpus=1.0, gpus=1.0)


def node(name: str = "a", cpus: float = 8, gpus: float = 1, **facts: Any) -> Node:
    """A node in order, but for what is given."""
    return Node(name=name, resources={"CPU": cpus, "GPU": gpus}, facts=FACTS.model_copy(update=facts))


def worst(findings: list[Finding] | Finding) -> tuple[str, str]:
    """The status of the worst finding, and what all say with their remedies."""
    listed = findings if isinstance(findings, list) else [findings]
    assert listed
    status = max((finding.status for finding in listed), key=["fine", "note", "wrong"].index)
    assert all(finding.remedy for finding in listed if finding.status == "wrong")
    return status, " | ".join(f"{finding.what} {finding.remedy}" for finding in listed)


def test_nodes_that_are_in_order_have_nothing_wrong(tiny_plan: MakePlan) -> None:
    nodes, plan = [node("a"), node("b"), node("c")], tiny_plan()
    for findings in (
        check_nodes(nodes, 3),
        check_versions(nodes),
        check_gpus(nodes),
        check_authentication(nodes, "10.0.0.1:6379"),
        check_room(nodes, plan),
        check_memory(nodes, plan, ONE_GPU, SMALL),
        check_shm(nodes, ONE_GPU, plan),
        check_clocks(100.0, 100.1, {"a": 100.05, "b": 100.0, "c": 101.0}),
        check_run_space(10**9, free_bytes=2 * 10**9, there_bytes=0, folder="/runs"),
        check_store_space(10**9, nodes),
    ):
        assert worst(findings)[0] == "fine", findings


def test_nodes_that_are_missing_or_cannot_answer_are_wrong() -> None:
    told = "ModuleNotFoundError: No module named 'ebdiff_orchestrator'"
    mute = Node(name="b", resources={"CPU": 8.0}, facts=None, problem=told)
    status, told = worst(check_nodes([node("a"), mute], expected=3))
    assert status == "wrong"
    assert "2 of 3 nodes" in told
    assert "b: cannot run a check (ModuleNotFoundError" in told


@pytest.mark.parametrize("package", ["python", "torch", "ray", "diffusers", "ebdiff-orchestrator", OUR_CODE])
def test_a_version_that_differs_is_wrong_and_says_where(package: str) -> None:
    other = {**FACTS.versions, package: "2.99.1"}
    status, told = worst(check_versions([node("a"), node("b", versions=other), node("c")]))
    assert status == "wrong"
    assert "2.99.1 on b" in told
    assert "on a, c" in told


@pytest.mark.parametrize(
    ("version", "status"), [("2.58.1", "wrong"), ("2.9.0", "wrong"), ("2.59.0", "fine"), ("3.0", "fine")]
)
def test_a_ray_with_known_holes_is_wrong(version: str, status: str) -> None:
    assert MINIMUM_RAY == (2, 59)
    nodes = [node(name, versions={**FACTS.versions, "ray": version}) for name in "ab"]
    assert worst(check_versions(nodes))[0] == status


@pytest.mark.parametrize(
    ("nodes", "status", "says"),
    [
        ([node(gpus=2)], "wrong", "a: Ray hands out 2, torch can use 1"),
        ([node(), node("b", cuda_problem="driver too old")], "wrong", "b: torch cannot use CUDA (driver too old)"),
        ([node(gpus=0)], "note", "a: Ray hands out 0 of 1"),
        ([Node(name="a", resources={"CPU": 2.0}, facts=FACTS.model_copy(update={"gpus": ()}))], "fine", "none"),
    ],
)
def test_gpus_that_torch_cannot_use_are_wrong_and_those_that_ray_keeps_worth_knowing(
    nodes: list[Node], status: str, says: str
) -> None:
    found, told = worst(check_gpus(nodes))
    assert found == status
    assert says in told


def test_a_region_that_finds_no_room_is_wrong_and_waiting_regions_are_worth_knowing(tiny_plan: MakePlan) -> None:
    two = tiny_plan("workers.gpus=2")
    status, told = worst(check_room([node("a")], two))
    assert status == "wrong"
    assert "a region asks for 2 workers of 1 CPU and 1 GPU, and the nodes hold 1 such worker(s)" in told
    status, told = worst(check_room([node("a"), node("b")], tiny_plan()))
    assert status == "note"
    assert "2 of 3 region(s) at once" in told
    assert worst(check_room([node("a"), node("b")], tiny_plan("placement=packed")))[0] == "fine"


def test_a_network_that_fits_on_no_gpu_or_host_is_wrong(tiny_plan: MakePlan) -> None:
    large = Footprint(params=10**9, state_bytes=30 * GIB, activation_bytes=20 * GIB)
    status, told = worst(check_memory([node("a")], tiny_plan(), ONE_GPU, large))
    assert status == "wrong"
    assert "a: A GPU has 40.0 GiB" in told
    half = Request(processes=1, cpus=1.0, gpus=0.5)
    middling = Footprint(params=10, state_bytes=10 * GIB, activation_bytes=12 * GIB)
    assert worst(check_memory([node("a")], tiny_plan(), ONE_GPU, middling))[0] == "fine"
    assert worst(check_memory([node("a")], tiny_plan(), half, middling))[0] == "wrong"
    tenth = Request(processes=1, cpus=1.0, gpus=0.1)
    status, told = worst(check_memory([node("a")], tiny_plan(), tenth, SMALL))
    assert (status, told.split(" need")[0]) == ("fine", "3 worker(s) on a GPU"), "of three regions"
    on_cpus = Request(processes=1, cpus=1.0, gpus=0.0)
    status, told = worst(check_memory([node("a", memory_bytes=60 * GIB)], tiny_plan(), on_cpus, middling))
    assert status == "wrong"
    assert "a: 3 worker(s) need about 70.5 GiB, it has 60.0 GiB" in told
    assert "raise workers.cpus" in told
    _, told = worst(check_memory([node(THIS_MACHINE, memory_bytes=60 * GIB)], tiny_plan(), on_cpus, middling))
    assert "--num-cpus" in told, "an embedded Ray has as many CPUs as workers.cpus asks for"
    assert "workers.cpus" not in told


def test_a_container_s_default_shm_is_wrong_for_regions_of_several_gpus(tiny_plan: MakePlan) -> None:
    docker = node(shm_bytes=64 << 20)
    assert worst(check_shm([docker], ONE_GPU, tiny_plan()))[0] == "fine"
    assert worst(check_shm([docker], ONE_GPU, tiny_plan("placement=balanced")))[0] == "wrong"
    assert worst(check_shm([docker], Request(2, 1.0, 1.0), tiny_plan("workers.gpus=2")))[0] == "wrong"
    assert worst(check_shm([node(shm_bytes=None)], ONE_GPU, tiny_plan()))[0] == "wrong"


@pytest.mark.parametrize(
    ("said", "status", "text"),
    [
        (94.0, "wrong", "b is 6.0 s behind"),
        (107.5, "wrong", "b is 6.5 s ahead"),
        (99.0, "fine", ""),
        (102.9, "fine", ""),
    ],
)
def test_clocks_that_are_provably_apart_are_wrong(said: float, status: str, text: str) -> None:
    found, told = worst(check_clocks(100.0, 101.0, {"a": 100.5, "b": said}))
    assert found == status
    assert text in told


@pytest.mark.parametrize("mode", [None, "disabled"])
def test_a_cluster_that_asks_for_no_token_is_wrong(mode: str | None) -> None:
    status, told = worst(check_authentication([node("a"), node("b", auth_mode=mode)], "10.0.0.1:6379"))
    assert status == "wrong"
    assert "asks for no token on b" in told
    assert worst(check_authentication([node(auth_mode=mode)], None))[0] == "fine"


@pytest.mark.parametrize(
    ("mode", "status"), [(0o644, "wrong"), (0o640, "wrong"), (0o600, "fine"), (0o400, "fine"), (None, "fine")]
)
def test_a_token_that_others_can_read_is_wrong(mode: int | None, status: str) -> None:
    for address in (None, "10.0.0.1:6379"):
        found, told = worst(check_authentication([node(token_mode=mode)], address))
        assert found == status
        assert ("chmod 600 ~/.ray/auth_token" in told) == (status == "wrong")


def test_too_little_space_is_wrong_and_what_the_run_wrote_already_counts() -> None:
    assert worst(check_run_space(5 * 10**9, free_bytes=10**9, there_bytes=0, folder="/runs"))[0] == "wrong"
    assert worst(check_run_space(5 * 10**9, free_bytes=10**9, there_bytes=4 * 10**9 + 1, folder="/runs"))[0] == "fine"
    full = node("b", cache_free_bytes=10**8)
    status, told = worst(check_store_space(10**9, [node("a"), full]))
    assert status == "wrong"
    assert "b: /cache has 0.10 GB" in told
    assert worst(check_store_space(10**9, [node("b", cache_free_bytes=10**8, cache_used_bytes=10**9)]))[0] == "fine"
    assert worst(check_store_space(None, [full]))[0] == "note"


def test_this_machine_tells_its_facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "pixels").write_bytes(b"12345")
    told = NodeFacts.model_validate(gather_facts(str(tmp_path / "cache"), of_ray=False))
    assert told.versions["ray"].startswith("2.")
    assert len(told.versions[OUR_CODE]) == 12
    assert told.memory_bytes > GIB
    assert (told.auth_mode, told.token_mode, told.token_file) == ("token", 0o644, str(token))
    assert told.cache_used_bytes == 5
    assert told.cache_free_bytes > 0


@pytest.mark.parametrize(("of_ray", "seen"), [(False, "3"), (True, "all")])
def test_gpus_that_the_user_hides_are_not_counted_but_those_that_ray_hides_from_a_task_are(
    of_ray: bool, seen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(facts, "_DEVICES", (tmp_path,))
    monkeypatch.setattr(facts, "_ASK_CUDA", "import os; print(1, os.environ.get('CUDA_VISIBLE_DEVICES', 'all'))")
    assert gather_facts(str(tmp_path), of_ray)["gpus"] == [{"name": seen, "memory_bytes": 1}]
