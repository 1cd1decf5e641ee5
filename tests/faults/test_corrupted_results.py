"""What others read of a run, an ensemble, an evaluation, a progress file, is refused, made again or passed over."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from damage import Damage, damages_of, flip_bit, flip_some_bit
from diffusers import DiffusionPipeline
from finished_run import finished_run
from small_runs import small_plan

from ebdiff_orchestrator import evaluate, load_ensemble
from ebdiff_orchestrator.evaluation import evaluate as evaluating
from ebdiff_orchestrator.evaluation import work
from ebdiff_orchestrator.evaluation.statistics import Statistics
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.run_table import read_status
from region_workers.networks.dense import load_verified
from region_workers.networks.pruned_unet import PrunedUNet2DModel
from region_workers.storage.durable import replace_model
from region_workers.storage.integrity import file_digest
from schemas.errors import UserError
from schemas.job import PROGRESS_FILE, Progress

WEIGHTS = "diffusion_pytorch_model.safetensors"
_ENSEMBLE = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/low/config.json",
    f"unet/low/{WEIGHTS}",
    "unet/seal.json",
    "SHA256SUMS",
    "seal.json",
)


@pytest.fixture(scope="module")
def finished(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that counts as finished."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    finished_run(run_dir, small_plan())
    return run_dir


@pytest.fixture
def ensemble(finished: Path, tmp_path: Path) -> Path:
    """Its ensemble, at another place."""
    return Path(shutil.copytree(finished / "ensemble", tmp_path / "moved"))


def _other(name: str) -> str:
    return f"unet/high/{WEIGHTS}" if name.endswith(WEIGHTS) else "scheduler/scheduler_config.json"


def _cases_of(names: tuple[str, ...]) -> Iterator[Any]:
    for name in names:
        for damage in damages_of(name):
            if name != _other(name) or damage.name != "swapped":
                yield pytest.param(name, damage, id=f"{name}: {damage}")


@pytest.mark.parametrize("offload", [False, True], ids=["loaded", "offloaded"])
@pytest.mark.parametrize(("name", "damage"), _cases_of(_ENSEMBLE))
def test_a_damaged_ensemble_is_not_loaded_and_its_file_is_named(
    ensemble: Path, name: str, damage: Damage, offload: bool
) -> None:
    damage.harm(ensemble / name, ensemble / _other(name))
    with pytest.raises(UserError, match=str(ensemble / name)) as refusal:
        load_ensemble(ensemble, offload=offload)
    assert "Restore it" in str(refusal.value)


@pytest.mark.parametrize("seed", range(24))
def test_any_flipped_bit_of_an_ensemble_is_seen(ensemble: Path, seed: int) -> None:
    flip_some_bit(ensemble / _ENSEMBLE[seed % len(_ENSEMBLE)], seed)
    with pytest.raises(UserError):
        load_ensemble(ensemble)


_SHARDS = ("features-00000.npy", "features-00000.json", "features-00001.npy", "features-00001.json")


class PowerCutError(Exception):
    """What ends an evaluation before its last words."""


def _distance(ours: Statistics, theirs: Statistics) -> float:
    return float(np.abs(ours.mean - theirs.mean).sum() + np.abs(ours.covariance - theirs.covariance).sum())


def _evaluate(run_dir: Path, cut: bool = False) -> float:
    """The evaluation of the command line, in this process, by the extractor that needs no weights."""
    with (
        patch.object(evaluating, "frechet_distance", _distance),
        patch.object(work, "SHARD_IMAGES", 3),
        patch.object(evaluating, "write_statistics", _cut) if cut else nullcontext(),
    ):
        return evaluate(run_dir, 6, reference_images=6, extractor="random-conv", in_process=True).distance


def _cut(*_: object) -> None:
    raise PowerCutError


@pytest.fixture(scope="module")
def evaluated(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run whose evaluation was recorded, and one whose evaluation broke off with all of its shards made."""
    runs = {}
    for name in ("recorded", "cut"):
        runs[name] = tmp_path_factory.mktemp(name) / "run"
        finished_run(runs[name], small_plan(f"workers.cache_dir={runs[name].parent}/cache"))
    _evaluate(runs["recorded"])
    with pytest.raises(PowerCutError):
        _evaluate(runs["cut"], cut=True)
    return runs


def _copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def _recorded(run_dir: Path) -> float:
    (evaluation,) = RunDirectory(run_dir).read().evaluations.values()
    return evaluation.distance


def _evaluation(run_dir: Path) -> Path:
    (folder,) = (path for path in (run_dir / "evaluation").iterdir() if not path.name.startswith("reference-"))
    return folder


@pytest.mark.parametrize(("name", "damage"), _cases_of(_SHARDS))
def test_a_damaged_part_of_an_evaluation_is_made_again_to_the_same_statistics(
    evaluated: dict[str, Path], tmp_path: Path, name: str, damage: Damage
) -> None:
    run_dir = _copy(evaluated["cut"], tmp_path)
    folder = _evaluation(run_dir)
    damage.harm(folder / name, folder / name.replace("00000", "x").replace("00001", "00000").replace("x", "00001"))
    number = _evaluate(run_dir)
    whole = evaluated["recorded"]
    assert file_digest(folder / "statistics.npz") == file_digest(_evaluation(whole) / "statistics.npz")
    assert number == _recorded(whole)


@pytest.mark.parametrize(("name", "damage"), _cases_of(("statistics.npz", "report.json")))
def test_damaged_statistics_and_reports_are_made_again(
    evaluated: dict[str, Path], tmp_path: Path, name: str, damage: Damage
) -> None:
    run_dir = _copy(evaluated["recorded"], tmp_path)
    folder = _evaluation(run_dir)
    before = file_digest(folder / "statistics.npz")
    other = folder / ("report.json" if name == "statistics.npz" else "statistics.npz")
    damage.harm(folder / name, other)
    _evaluate(run_dir)
    assert file_digest(folder / "statistics.npz") == before
    report = json.loads((folder / "report.json").read_text())
    assert report["evaluation"]["frechet_distance"] == _recorded(run_dir)


@pytest.mark.parametrize("damage", damages_of("x.npz", swaps=False), ids=str)
def test_damaged_statistics_of_a_reference_are_not_measured_against(
    evaluated: dict[str, Path], tmp_path: Path, damage: Damage
) -> None:
    run_dir = _copy(evaluated["cut"], tmp_path)
    (cached,) = (evaluated["cut"].parent / "cache" / "random-conv").glob("*.npz")
    good = cached.read_bytes()
    damage.harm(cached, cached)
    number = _evaluate(run_dir)
    cached.write_bytes(good)
    assert number == _recorded(evaluated["recorded"])


@pytest.mark.parametrize("damage", damages_of("progress.json", swaps=False), ids=str)
def test_a_damaged_progress_file_is_passed_over(finished: Path, tmp_path: Path, damage: Damage) -> None:
    run_dir = _copy(finished, tmp_path)
    stage = run_dir / "train" / "low"
    stage.mkdir(parents=True)
    replace_model(stage / PROGRESS_FILE, Progress(stage="train/low", step=3))
    assert read_status(run_dir).progress["train/low"].step == 3
    damage.harm(stage / PROGRESS_FILE, stage)
    status = read_status(run_dir)
    assert status.progress.get("train/low", Progress(stage="train/low")).stage == "train/low"
    assert status.manifest.finished()


@pytest.mark.parametrize("name", ["unet/low/config.json", f"unet/low/{WEIGHTS}", "unet/seal.json", "seal.json"])
def test_one_expert_alone_is_what_its_ensemble_s_seal_says(ensemble: Path, name: str) -> None:
    expert = load_verified(ensemble / "unet/low")
    assert PrunedUNet2DModel.from_pretrained(ensemble / "unet/low").config.keys() >= expert.config.keys()
    if name == "seal.json":
        (ensemble / "unet/seal.json").unlink()
    else:
        flip_bit(ensemble / name, 150, 2)
    for load in (load_verified, PrunedUNet2DModel.from_pretrained):
        with pytest.raises(ValueError, match=r"unet/\S+ is missing or not what was written"):
            load(ensemble / "unet/low")


def test_plain_diffusers_refuses_a_damaged_scheduler_of_ours_and_sums_tell_anyone(ensemble: Path) -> None:
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=ensemble, check=False).returncode == 0
    listed = {line.split("  ", 1)[1] for line in (ensemble / "SHA256SUMS").read_text().splitlines()}
    files = {path.relative_to(ensemble).as_posix() for path in ensemble.rglob("*") if path.is_file()}
    assert listed == files - {"SHA256SUMS", "seal.json"}
    DiffusionPipeline.from_pretrained(ensemble)
    config = ensemble / "scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("0.02", "0.03"))
    with pytest.raises(UserError, match=r"scheduler_config\.json: expected the file as it was saved"):
        DiffusionPipeline.from_pretrained(ensemble)
    assert subprocess.run(check, cwd=ensemble, check=False, capture_output=True).returncode != 0
