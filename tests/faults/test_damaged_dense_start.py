"""A damaged dense start is not trained from: not that of a run, by its record, nor that of a folder, by its digest."""

import shutil
from pathlib import Path

import pytest
from damage import flip_some_bit
from serial_cluster import SerialCluster
from small_runs import UnwillingCluster, WouldStartError, small_plan

from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run.resolve import adopt_dense
from region_workers.networks.pretrained import DenseFolder, dense_network
from schemas.errors import PlanError, RunFailed, UserError

DENSE = "regions=[{train: [0, 1000], pruning_ratio: 0, name: all}]"
EXPERT = "train/all/expert"
WEIGHTS = f"{EXPERT}/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def dense_run(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dense run, to be copied."""
    run_dir = tmp_path_factory.mktemp("dense") / "run"
    driver.launch(small_plan(DENSE, "training.steps=2"), run_dir, executor=SerialCluster())
    return run_dir


@pytest.mark.parametrize("name", [WEIGHTS, f"{EXPERT}/config.json"])
def test_a_run_whose_expert_is_damaged_is_refused_and_nothing_written(
    dense_run: Path, tmp_path: Path, name: str
) -> None:
    dense = Path(shutil.copytree(dense_run, tmp_path / "dense"))
    flip_some_bit(dense / name, seed=4)
    with pytest.raises(PlanError, match=f"{name} .*`ebdiff resume {dense}`"):
        driver.launch(small_plan(f"model.pretrained={dense}"), tmp_path / "run", executor=UnwillingCluster())
    assert not (tmp_path / "run").exists()


def test_a_folder_is_the_one_that_the_run_began_with_in_every_launch_and_worker(
    dense_run: Path, cache_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(dense_run / EXPERT, tmp_path / "network"))
    plan = small_plan(f"model.pretrained={folder}")
    with pytest.raises(WouldStartError):
        driver.launch(plan, tmp_path / "run", executor=UnwillingCluster())
    model, known = adopt_dense(plan)[0].model, adopt_dense(plan)[1]
    flip_some_bit(folder / Path(WEIGHTS).name, seed=4)
    with pytest.raises(UserError, match=r"not the network that the run .* began with"):
        driver.launch(plan, tmp_path / "run", executor=UnwillingCluster())
    assert known is not None
    with pytest.raises(RunFailed, match=r"not the one the run began with .* Restore it"):
        dense_network(model, plan.data, known.digest)


def test_a_folder_that_is_damaged_while_it_is_read_is_noticed(
    dense_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(dense_run / EXPERT, tmp_path / "network"))
    plan, known = adopt_dense(small_plan(f"model.pretrained={folder}"))
    load = DenseFolder.load

    def damaged(dense: DenseFolder, *arguments: object, **named: object) -> object:
        flip_some_bit(folder / Path(WEIGHTS).name, seed=4)
        return load(dense, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(DenseFolder, "load", damaged)
    assert known is not None
    with pytest.raises(RunFailed, match="not the one the run began with"):
        dense_network(plan.model, plan.data, known.digest)
