"""A damaged checkpoint is never gone on from: the last good one is, to the same bits."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from damage import Damage, damages_of, flip_some_bit
from run_products import products
from small_runs import PowerCutError, counted_steps, power_cut, small_jobs

from region_workers.storage.durable import write_text
from region_workers.storage.integrity import file_digest
from region_workers.training import checkpoints
from region_workers.training.checkpoints import Checkpoints
from region_workers.training.device import current_world
from region_workers.worker.run import run_job
from schemas.errors import RunFailed
from schemas.job import PROGRESS_FILE, WorkerJob

_FILES = {
    "draw": ("state.safetensors", "metrics.parquet", "masks.arrow", "checkpoint.json"),
    "train": ("state.safetensors", "metrics.parquet", "checkpoint.json"),
}
_CUT_BEFORE = {"draw": 4, "train": 5}  # both save every 2 steps
_STEPS = {"draw": 5, "train": 6}
_OLD, _NEW = "step-000000002", "step-000000004"


@pytest.fixture(scope="module")
def whole(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What the first region's worker has left after each stage when nothing happens to it."""
    run_dir = tmp_path_factory.mktemp("whole")
    left = {}
    for stage in _FILES:
        run_job(_job(run_dir, cache_dir, stage))
        left[stage] = products(run_dir)
    return left


@pytest.fixture(scope="module")
def interrupted(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run cut off in its draw and one cut off in its training, each with checkpoints after 2 and 4 steps."""
    runs = {stage: tmp_path_factory.mktemp(stage) for stage in _FILES}
    for stage, run_dir in runs.items():
        with power_cut(_CUT_BEFORE[stage]), pytest.raises(PowerCutError):
            run_job(_job(run_dir, cache_dir, "train"))
        assert sorted(path.name for path in _checkpoints(run_dir, stage).iterdir()) == [_OLD, _NEW]
    return runs


def _job(run_dir: Path, cache_dir: Path, last_stage: str) -> WorkerJob:
    job = small_jobs(run_dir, cache_dir)[0]
    return job if last_stage == "train" else job.model_copy(update={"train": None})


def _checkpoints(run_dir: Path, stage: str) -> Path:
    return run_dir / stage / "low" / "checkpoints"


def _copy(interrupted: dict[str, Path], stage: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted[stage], tmp_path / "run"))


def _goes_on_from(run_dir: Path, cache_dir: Path, stage: str, step: int) -> None:
    with counted_steps() as steps:
        run_job(_job(run_dir, cache_dir, stage))
    assert steps == [*range(step, _STEPS[stage])]


def _cases() -> Iterator[object]:
    for stage, names in _FILES.items():
        for name in names:
            for damage in damages_of(name):
                yield pytest.param(stage, name, damage, id=f"{stage} {name}: {damage}")


@pytest.mark.parametrize("stage", _FILES)
def test_an_undamaged_checkpoint_is_gone_on_from(
    interrupted: dict[str, Path], whole: dict[str, dict[str, str]], cache_dir: Path, tmp_path: Path, stage: str
) -> None:
    run_dir = _copy(interrupted, stage, tmp_path)
    _goes_on_from(run_dir, cache_dir, stage, 4)
    assert products(run_dir) == whole[stage]


@pytest.mark.parametrize(("stage", "name", "damage"), _cases())
def test_the_checkpoint_before_a_damaged_one_is_gone_on_from_to_the_same_bits(
    interrupted: dict[str, Path],
    whole: dict[str, dict[str, str]],
    cache_dir: Path,
    tmp_path: Path,
    stage: str,
    name: str,
    damage: Damage,
) -> None:
    run_dir = _copy(interrupted, stage, tmp_path)
    folder = _checkpoints(run_dir, stage)
    damage.harm(folder / _NEW / name, folder / _OLD / name)
    _goes_on_from(run_dir, cache_dir, stage, 2)
    assert products(run_dir) == whole[stage]


@pytest.mark.parametrize("seed", range(16))
def test_any_flipped_bit_of_a_checkpoint_s_record_is_seen(
    interrupted: dict[str, Path], whole: dict[str, dict[str, str]], cache_dir: Path, tmp_path: Path, seed: int
) -> None:
    run_dir = _copy(interrupted, "train", tmp_path)
    flip_some_bit(_checkpoints(run_dir, "train") / _NEW / "checkpoint.json", seed)
    _goes_on_from(run_dir, cache_dir, "train", 2)
    assert products(run_dir) == whole["train"]


@pytest.mark.parametrize("stage", _FILES)
def test_a_checkpoint_under_the_name_of_another_is_not_taken(
    interrupted: dict[str, Path], whole: dict[str, dict[str, str]], cache_dir: Path, tmp_path: Path, stage: str
) -> None:
    run_dir = _copy(interrupted, stage, tmp_path)
    folder = _checkpoints(run_dir, stage)
    shutil.rmtree(folder / _NEW)
    (folder / _OLD).rename(folder / _NEW)
    _goes_on_from(run_dir, cache_dir, stage, 0)
    assert products(run_dir) == whole[stage]


@pytest.mark.parametrize("stage", _FILES)
def test_without_a_good_checkpoint_the_stage_begins_anew(
    interrupted: dict[str, Path], whole: dict[str, dict[str, str]], cache_dir: Path, tmp_path: Path, stage: str
) -> None:
    run_dir = _copy(interrupted, stage, tmp_path)
    for folder in (_OLD, _NEW):
        flip_some_bit(_checkpoints(run_dir, stage) / folder / "state.safetensors", seed=3)
    _goes_on_from(run_dir, cache_dir, stage, 0)
    assert products(run_dir) == whole[stage]


def test_the_worker_says_which_checkpoint_it_passed_over(
    interrupted: dict[str, Path], cache_dir: Path, tmp_path: Path
) -> None:
    run_dir = _copy(interrupted, "train", tmp_path)
    flip_some_bit(_checkpoints(run_dir, "train") / _NEW / "state.safetensors", seed=3)
    run_job(small_jobs(run_dir, cache_dir)[0])
    progress = json.loads((run_dir / "train" / "low" / PROGRESS_FILE).read_text())
    assert f"checkpoint {_NEW} was damaged" in progress["note"]


@pytest.mark.parametrize("name", ["ticket.json", "expert/diffusion_pytorch_model.safetensors"])
def test_a_training_does_not_begin_from_a_damaged_ticket_and_keeps_its_checkpoints(
    interrupted: dict[str, Path], cache_dir: Path, tmp_path: Path, name: str
) -> None:
    run_dir = _copy(interrupted, "train", tmp_path)
    flip_some_bit(run_dir / "draw/low/tickets/low" / name, seed=2)
    with pytest.raises(RunFailed, match=f"{name} is missing or not what the draw wrote. Go on with `ebdiff resume`"):
        run_job(_job(run_dir, cache_dir, "train"))
    assert sorted(path.name for path in _checkpoints(run_dir, "train").iterdir()) == [_OLD, _NEW]


# A draw shared by two regions, of which the first is not pruned: its ticket is there before the draw goes on.
_SHARED = ("draw.scope=shared", "regions.0.pruning_ratio=0.0")
_TICKET = "draw/shared/tickets/low"


def _shared_draw(run_dir: Path, cache_dir: Path) -> WorkerJob:
    return small_jobs(run_dir, cache_dir, *_SHARED)[0]


@pytest.fixture(scope="module")
def shared(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A shared draw that was cut off after its first ticket, and what an undisturbed one leaves."""
    cut, undisturbed = tmp_path_factory.mktemp("cut"), tmp_path_factory.mktemp("undisturbed")
    with power_cut(4), pytest.raises(PowerCutError):
        run_job(_shared_draw(cut, cache_dir))
    run_job(_shared_draw(undisturbed, cache_dir))
    return cut, products(undisturbed)


@pytest.mark.parametrize("name", ["ticket.json", "expert/config.json", "expert/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("kind", ["flipped", "cut", "deleted"])
def test_a_damaged_ticket_of_a_draw_that_goes_on_is_drawn_again(
    shared: tuple[Path, dict[str, str]], cache_dir: Path, tmp_path: Path, name: str, kind: str
) -> None:
    cut, whole = shared
    run_dir = Path(shutil.copytree(cut, tmp_path / "run"))
    file = run_dir / _TICKET / name
    if kind == "flipped":
        flip_some_bit(file, seed=5)
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    else:
        file.unlink()
    run_job(_shared_draw(run_dir, cache_dir))
    assert products(run_dir) == whole


@pytest.mark.parametrize("gone", ["its folder", "its seal"])
def test_a_ticket_without_what_vouched_for_it_is_drawn_again(
    shared: tuple[Path, dict[str, str]], cache_dir: Path, tmp_path: Path, gone: str
) -> None:
    cut, whole = shared
    run_dir = Path(shutil.copytree(cut, tmp_path / "run"))
    if gone == "its folder":
        shutil.rmtree(run_dir / _TICKET)
    else:
        (run_dir / _TICKET / "seal.json").unlink()
        flip_some_bit(run_dir / _TICKET / "expert/diffusion_pytorch_model.safetensors", seed=5)
    run_job(_shared_draw(run_dir, cache_dir))
    assert products(run_dir) == whole


def test_the_checkpoint_before_a_lost_ticket_is_gone_on_from(tmp_path: Path) -> None:
    ticket = tmp_path / "tickets/low/ticket.json"
    write_text(ticket, "{}")
    with Checkpoints(tmp_path / "checkpoints", "key", keep=2) as kept:
        kept.save(2, 0.0, {"x": torch.zeros(1)}, [])
        kept.save(4, 0.0, {"x": torch.ones(1)}, [], beside={"tickets/low/ticket.json": file_digest(ticket)})
    world = current_world(use_gpu=False)
    found = Checkpoints(tmp_path / "checkpoints", "key", keep=2).newest_good(world)
    assert found is not None
    assert found.info.step == 4
    ticket.unlink()
    found = Checkpoints(tmp_path / "checkpoints", "key", keep=2).newest_good(world)
    assert found is not None
    assert found.info.step == 2


def test_checkpoints_of_more_steps_than_are_asked_for_do_not_take_the_new_ones_place(tmp_path: Path) -> None:
    world = current_world(use_gpu=False)
    with Checkpoints(tmp_path / "checkpoints", "key", keep=2) as kept:
        for step in (7, 8, 2, 3, 4):
            kept.save(step, 0.0, {"x": torch.zeros(1)}, [])
    found = Checkpoints(tmp_path / "checkpoints", "key", keep=2).newest_good(world, most_steps=5)
    assert found is not None
    assert found.info.step == 4
    assert sorted(path.name[-1] for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4", "7", "8"]


def test_a_checkpoint_damaged_after_it_was_found_whole_is_not_gone_on_from(
    interrupted: dict[str, Path],
    whole: dict[str, dict[str, str]],
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir = _copy(interrupted, "train", tmp_path)
    load = checkpoints.load_file

    def damaged(path: Path) -> dict[str, torch.Tensor]:
        if path.parent.name == _NEW:
            flip_some_bit(path, seed=3)
        return load(path)

    monkeypatch.setattr(checkpoints, "load_file", damaged)
    _goes_on_from(run_dir, cache_dir, "train", 2)
    assert products(run_dir) == whole["train"]
