"""A damaged file of a run is found before it is used, named, and made again to the same bits; nothing good is lost."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from damage import Damage, damages_of, flip_some_bit
from listener import Listener
from run_products import products
from serial_cluster import SerialCluster
from small_runs import HarmingCluster, UnwillingCluster, WouldStartError, other_region, small_plan

from ebdiff_orchestrator.reports.tickets import Settings, report_tickets
from ebdiff_orchestrator.run import finishing
from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run.ownership import RunTakenOverError
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.storage.integrity import file_digest
from schemas.digest import digest
from schemas.errors import RunFailed, UserError
from schemas.manifest import MANIFEST_FILE, Manifest

WEIGHTS = "expert/diffusion_pytorch_model.safetensors"
OF_WORKERS = (
    "draw/low/masks.arrow",
    "draw/low/metrics.parquet",
    "draw/low/tickets/low/ticket.json",
    "draw/low/tickets/low/expert/config.json",
    f"draw/low/tickets/low/{WEIGHTS}",
    "train/low/metrics.parquet",
    "train/low/expert/config.json",
    f"train/low/{WEIGHTS}",
)
OF_THE_DRIVER = (
    "ensemble/model_index.json",
    "ensemble/scheduler/scheduler_config.json",
    "ensemble/unet/config.json",
    "ensemble/unet/low/config.json",
    "ensemble/unet/low/diffusion_pytorch_model.safetensors",
    "samples/00000.png",
    "samples/grid.png",
)
_OTHERS = {  # what is put in the place of a file that every run has once
    "ensemble/model_index.json": "ensemble/unet/config.json",
    "ensemble/scheduler/scheduler_config.json": "ensemble/unet/config.json",
    "ensemble/unet/config.json": "ensemble/unet/low/config.json",
    "samples/00000.png": "samples/00001.png",
    "samples/grid.png": "samples/00001.png",
}
_RANDOM_FLIPS = range(24)
_REPORTS = ("manifest.json", "result.json", "progress.json", "recent_metrics.json")  # what a launch rewrites


@pytest.fixture(scope="module")
def finished(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    driver.launch(small_plan(), run_dir, executor=SerialCluster())
    return run_dir


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _cases(names: tuple[str, ...]) -> Iterator[object]:
    for name in names:
        for damage in damages_of(name):
            yield pytest.param(name, damage, id=f"{name}: {damage}")


def _do(damage: Damage, run_dir: Path, name: str) -> None:
    damage.harm(run_dir / name, run_dir / _OTHERS.get(name, other_region(name)))


def _good_files(run_dir: Path, damaged: str) -> dict[Path, str]:
    files = [path for path in run_dir.rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    kept = [path for path in files if path.name not in _REPORTS]
    return {path: file_digest(path) for path in kept if path != run_dir / damaged}


def _manifest(run_dir: Path) -> Manifest:
    return RunDirectory(run_dir).read()


@pytest.mark.parametrize(("name", "damage"), _cases(OF_WORKERS))
def test_a_damaged_file_is_named_and_its_stage_done_again(run_dir: Path, name: str, damage: Damage) -> None:
    _do(damage, run_dir, name)
    good = _good_files(run_dir, name)
    listener = Listener()
    with pytest.raises(WouldStartError, match="region low"):
        driver.resume(run_dir, view=listener, executor=UnwillingCluster())
    assert any(name in line and "again" in line for line in listener.said), listener.said
    assert {path: file_digest(path) for path in good} == good, "something good was overwritten or deleted"


@pytest.mark.parametrize("name", OF_WORKERS)
def test_what_was_damaged_is_made_again_to_the_same_bits(finished: Path, run_dir: Path, name: str) -> None:
    flip_some_bit(run_dir / name, seed=1)
    cluster = SerialCluster()
    driver.resume(run_dir, executor=cluster)
    assert cluster.jobs == ["region low"]
    assert _manifest(run_dir).finished()
    assert products(run_dir) == products(finished)
    again = [record.name for record in _manifest(run_dir).stages.values() if record.attempts == 2]
    assert again == [name.rsplit("low")[0] + "low", "ensemble", "samples"], "what was made from it was kept"


@pytest.mark.parametrize("name", [other_region(name) for name in OF_WORKERS])
def test_what_is_damaged_before_the_driver_enters_it_is_made_again_at_once(
    finished: Path, cache_dir: Path, tmp_path: Path, name: str
) -> None:
    cluster = HarmingCluster("region high", lambda run_dir: _delete_or_flip(run_dir / name))
    driver.launch(small_plan(), tmp_path / "run", executor=cluster)
    assert cluster.jobs == ["region high", "region high", "region low"]
    assert products(tmp_path / "run") == products(finished)


def _delete_or_flip(file: Path) -> None:
    if file.name == "config.json":
        file.unlink()
    else:
        flip_some_bit(file, seed=1)


@pytest.mark.parametrize("name", [f"train/high/{WEIGHTS}", "train/high/expert/config.json"])
def test_an_expert_damaged_while_another_region_trained_is_made_again_and_not_assembled(
    finished: Path, cache_dir: Path, tmp_path: Path, name: str
) -> None:
    cluster, listener = HarmingCluster("region low", lambda run_dir: flip_some_bit(run_dir / name, seed=1)), Listener()
    driver.launch(small_plan(), tmp_path / "run", view=listener, executor=cluster)
    assert any(name in line and "again" in line for line in listener.said), listener.said
    assert cluster.jobs == ["region high", "region low", "region high"]
    assert products(tmp_path / "run") == products(finished)


def test_assembling_verifies_the_bytes_that_it_reads(run_dir: Path) -> None:
    files = {region: _manifest(run_dir).stage(f"train/{region}").artifacts for region in ("low", "high")}
    flip_some_bit(run_dir / "train/high" / WEIGHTS, seed=1)
    with pytest.raises(RunFailed, match=f"train/high/{WEIGHTS} is missing or .* Go on with `ebdiff resume`"):
        finishing.assemble(small_plan(), str(run_dir), files, None)


def test_nothing_is_assembled_or_sampled_for_a_driver_that_lost_the_run(run_dir: Path) -> None:
    files = {region: _manifest(run_dir).stage(f"train/{region}").artifacts for region in ("low", "high")}
    owner, before = "00000001-00000000.json", _good_files(run_dir, "")
    with pytest.raises(RunTakenOverError):
        finishing.assemble(small_plan(), str(run_dir), files, None, owner)
    with pytest.raises(RunTakenOverError):
        finishing.sample(small_plan("seed=7"), str(run_dir), owner)
    assert _good_files(run_dir, "") == before


@pytest.mark.parametrize(("name", "damage"), _cases(OF_THE_DRIVER))
def test_a_damaged_ensemble_or_sample_is_named_and_made_again_to_the_same_bits(
    finished: Path, run_dir: Path, name: str, damage: Damage
) -> None:
    _do(damage, run_dir, name)
    listener = Listener()
    driver.resume(run_dir, view=listener, executor=UnwillingCluster())
    assert any(name in line and "again" in line for line in listener.said), listener.said
    assert products(run_dir) == products(finished)


@pytest.mark.parametrize("damage", damages_of(MANIFEST_FILE, swaps=False), ids=str)
def test_a_damaged_manifest_is_refused_and_its_run_is_found_again_without_it(
    finished: Path, run_dir: Path, damage: Damage
) -> None:
    damage.harm(run_dir / MANIFEST_FILE, run_dir)
    good = _good_files(run_dir, MANIFEST_FILE)
    with pytest.raises(UserError, match=MANIFEST_FILE) as refusal:
        driver.resume(run_dir, executor=UnwillingCluster())
    assert "launch" in str(refusal.value), "it does not say how to go on"
    assert {path: file_digest(path) for path in good} == good

    (run_dir / MANIFEST_FILE).unlink(missing_ok=True)
    driver.launch(small_plan(), run_dir, executor=UnwillingCluster())
    assert products(run_dir) == products(finished)


@pytest.mark.parametrize("name", ["draw/low/masks.arrow", "draw/low/tickets/low/ticket.json"])
def test_damaged_masks_and_tickets_are_not_reported(run_dir: Path, name: str) -> None:
    assert len(report_tickets(run_dir, Settings()).tickets) == 2
    flip_some_bit(run_dir / name, seed=6)
    with pytest.raises(UserError, match=f"{name}: expected as its stage has written it"):
        report_tickets(run_dir, Settings())


@pytest.mark.parametrize("seed", _RANDOM_FLIPS)
def test_any_flipped_bit_of_a_manifest_is_seen(finished: Path, run_dir: Path, seed: int) -> None:
    flip_some_bit(run_dir / MANIFEST_FILE, seed)
    with pytest.raises(UserError, match=MANIFEST_FILE):
        RunDirectory(run_dir).read()


@pytest.mark.parametrize("stage", ["draw/low", "train/low"])
@pytest.mark.parametrize("damage", damages_of("result.json"), ids=str)
def test_a_damaged_result_that_the_manifest_does_not_know_yet_is_not_taken(
    run_dir: Path, stage: str, damage: Damage
) -> None:
    (run_dir / MANIFEST_FILE).unlink()
    _do(damage, run_dir, f"{stage}/result.json")
    with pytest.raises(WouldStartError, match="region low"):
        driver.launch(small_plan(), run_dir, executor=UnwillingCluster())


@pytest.mark.parametrize("stage", ["draw/low", "train/low"])
@pytest.mark.parametrize("seed", _RANDOM_FLIPS)
def test_any_flipped_bit_of_a_result_is_seen(run_dir: Path, stage: str, seed: int) -> None:
    (run_dir / MANIFEST_FILE).unlink()
    flip_some_bit(run_dir / stage / "result.json", seed)
    with pytest.raises(WouldStartError, match="region low"):
        driver.launch(small_plan(), run_dir, executor=UnwillingCluster())


def test_a_manifest_of_a_newer_version_is_refused_and_left_alone(run_dir: Path) -> None:
    manifest = run_dir / MANIFEST_FILE
    values = {name: value for name, value in json.loads(manifest.read_text()).items() if name != "seal"}
    version = values["version"]
    values |= {"version": version + 1, "a_new_field": 1}
    newer = json.dumps({**values, "seal": digest(values)})
    manifest.write_text(newer)
    for go_on in (driver.resume, partial(driver.launch, small_plan())):
        with pytest.raises(UserError, match=f"version {version + 1}") as refusal:
            go_on(run_dir, executor=UnwillingCluster())
        assert "Use the version of ebdiff-orchestrator that wrote it" in str(refusal.value)
    assert manifest.read_text() == newer
