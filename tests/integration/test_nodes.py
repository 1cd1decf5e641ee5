"""A cluster of several nodes: regions on different ones, a node that is lost in training and comes back, equal bits."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from forked import ForkedProcess, run_forked
from node_cluster import NodeCluster
from process_cluster import ProcessCluster
from processes import wait_until
from ray_processes import ClusterSetting, cluster_setting

from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.run_table import read_status
from region_workers.storage.integrity import file_digest

REGIONS = ("low", "high")
BLOCKS = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
PLAN = {
    **TINY,
    "name": "nodes",
    "regions": [
        {"train": [0, 500], "pruning_ratio": 0.5, "name": "low"},
        {"train": [480, 1000], "pruning_ratio": 0.5, "name": "high"},
    ],
    "model": {**TINY["model"], "block_out_channels": [16], "add_attention": False, **BLOCKS},
    "training": {**TINY["training"], "steps": 400},
    "checkpointing": {"interval_steps": 20},
    "workers": {"retries": 3},
}
WORKER = "ray::RegionWorker"


@pytest.fixture(scope="module")
def setting(cache_dir: Path) -> Iterator[ClusterSetting]:
    with cluster_setting(cache_dir) as made:
        yield made


@pytest.fixture(scope="module")
def nodes(setting: ClusterSetting) -> NodeCluster:
    """A head without CPUs and two nodes with one each."""
    return NodeCluster(setting, "a", "b")


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "nodes.yaml"
    path.write_text(yaml.safe_dump(PLAN))
    return path


def _experts(run_dir: Path) -> dict[str, str]:
    files = {name: run_dir / f"train/{name}/expert/diffusion_pytorch_model.safetensors" for name in REGIONS}
    return {name: file_digest(file) for name, file in files.items()}


def _trains_on(nodes: NodeCluster, node: str) -> bool:
    return any(command.startswith(WORKER) for command in nodes.processes_of(node))


def _progress_of(run_dir: Path, region: str) -> int:
    """The steps of a region's training, by its worker's own word; -1 before."""
    if not (run_dir / "manifest.json").is_file():
        return -1
    progress = read_status(run_dir).progress.get(f"train/{region}")
    return progress.step if progress and progress.state == "running" else -1


@pytest.mark.slow
def test_the_doctor_finds_nothing_wrong_with_the_nodes(
    setting: ClusterSetting, nodes: NodeCluster, plan_file: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    asked = ("ebdiff", "doctor", plan_file, "--address", nodes.address, "--run-dir", run_dir, "--nodes", "3", "--json")
    result = run_forked(*asked, env=setting.environment)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert len(report["nodes"]) == len({node["name"] for node in report["nodes"]}) == 3
    assert sorted(node["resources"].get("CPU", 0) for node in report["nodes"]) == [0, 1, 1]
    assert len({node["facts"]["versions"]["code"] for node in report["nodes"]}) == 1
    told = {finding["check"]: finding["what"] for finding in report["findings"]}
    assert "on 3 node(s)" in told["shared storage"]
    assert "2 of 2 region(s) at once" in told["room"]
    assert not run_dir.exists()


@pytest.mark.slow
def test_regions_train_on_different_nodes_and_a_lost_node_that_comes_back_changes_no_bit(
    setting: ClusterSetting,
    nodes: NodeCluster,
    plan_file: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    run_dir = tmp_path / "disturbed"
    command, log = ("ebdiff", "launch", plan_file, "--address", nodes.address, "--run-dir", run_dir), tmp_path / "log"
    launched = ForkedProcess(*command, env=setting.environment, output=log)
    request.addfinalizer(lambda: launched.send_signal(signal.SIGKILL))
    said = launched.said

    def under_way() -> bool:
        assert launched.poll() is None, said()
        return all(_progress_of(run_dir, region) >= 40 for region in REGIONS)

    wait_until(under_way, "both regions to train")
    assert _trains_on(nodes, "a")
    assert _trains_on(nodes, "b")
    nodes.tell("remove", "b")
    lost_at = time.time()
    wait_until(lambda: "Trying again" in said() or launched.poll() is not None, "the driver to notice the lost node")
    wait_until(lambda: not nodes.processes_of("b"), "the lost node's processes to end")  # Ray's helpers look for it
    nodes.tell("add", "b")
    assert launched.wait(timeout=400) == 0, said()

    records = RunDirectory(run_dir).read()
    attempts = sorted(records.stage(f"train/{region}").attempts for region in REGIONS)
    assert attempts[0] == 1, "the other region was not disturbed"
    assert attempts[1] >= 2
    assert all((records.stage(f"train/{region}").finished_at or 0) > lost_at for region in REGIONS)

    driver.launch(load_plan(str(plan_file)), tmp_path / "whole", executor=ProcessCluster(workers=2))
    assert _experts(run_dir) == _experts(tmp_path / "whole")
