"""A damaged checkpoint is never gone on from: the last good one is, to the same bits."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

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


class CutRun(NamedTuple):
    """A copy of a run cut off in a stage, with checkpoints after 2 and 4 steps.

    `whole`: what an undisturbed one leaves.
    """

    run_dir: Path
    stage: str
    whole: dict[str, str]
    go_on: Callable[[], None]

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / self.stage / "low" / "checkpoints"

    def check_goes_on_from(self, step: int) -> None:
        with counted_steps() as steps:
            self.go_on()
        assert steps == [*range(step, _STEPS[self.stage])]
        assert products(self.run_dir) == self.whole


CutAt = Callable[[str], CutRun]


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
    """The runs that are copied."""
    runs = {stage: tmp_path_factory.mktemp(stage) for stage in _FILES}
    for stage, run_dir in runs.items():
        with power_cut(_CUT_BEFORE[stage]), pytest.raises(PowerCutError):
            run_job(_job(run_dir, cache_dir, "train"))
        assert sorted(path.name for path in (run_dir / stage / "low" / "checkpoints").iterdir()) == [_OLD, _NEW]
    return runs


@pytest.fixture
def cut_at(interrupted: dict[str, Path], whole: dict[str, dict[str, str]], cache_dir: Path, tmp_path: Path) -> CutAt:
    def copy(stage: str) -> CutRun:
        run_dir = Path(shutil.copytree(interrupted[stage], tmp_path / "run"))
        return CutRun(run_dir, stage, whole[stage], lambda: run_job(_job(run_dir, cache_dir, stage)))

    return copy


def _job(run_dir: Path, cache_dir: Path, last_stage: str) -> WorkerJob:
    job = small_jobs(run_dir, cache_dir)[0]
    return job if last_stage == "train" else job.model_copy(update={"train": None})


def _cases() -> Iterator[object]:
    for stage, names in _FILES.items():
        for name in names:
            for damage in damages_of(name):
                yield pytest.param(stage, name, damage, id=f"{stage} {name}: {damage}")


@pytest.mark.parametrize("stage", _FILES)
def test_an_undamaged_checkpoint_is_gone_on_from(cut_at: CutAt, stage: str) -> None:
    cut_at(stage).check_goes_on_from(4)


@pytest.mark.parametrize(("stage", "name", "damage"), _cases())
def test_the_checkpoint_before_a_damaged_one_is_gone_on_from_to_the_same_bits(
    cut_at: CutAt, stage: str, name: str, damage: Damage
) -> None:
    run = cut_at(stage)
    damage.harm(run.checkpoints / _NEW / name, run.checkpoints / _OLD / name)
    run.check_goes_on_from(2)


@pytest.mark.parametrize("seed", range(16))
def test_any_flipped_bit_of_a_checkpoint_s_record_is_seen(cut_at: CutAt, seed: int) -> None:
    run = cut_at("train")
    flip_some_bit(run.checkpoints / _NEW / "checkpoint.json", seed)
    run.check_goes_on_from(2)


@pytest.mark.parametrize("stage", _FILES)
def test_a_checkpoint_under_the_name_of_another_is_not_taken(cut_at: CutAt, stage: str) -> None:
    run = cut_at(stage)
    shutil.rmtree(run.checkpoints / _NEW)
    (run.checkpoints / _OLD).rename(run.checkpoints / _NEW)
    run.check_goes_on_from(0)


@pytest.mark.parametrize("stage", _FILES)
def test_without_a_good_checkpoint_the_stage_begins_anew(cut_at: CutAt, stage: str) -> None:
    run = cut_at(stage)
    for folder in (_OLD, _NEW):
        flip_some_bit(run.checkpoints / folder / "state.safetensors", seed=3)
    run.check_goes_on_from(0)


def test_the_worker_says_which_checkpoint_it_passed_over(cut_at: CutAt) -> None:
    run = cut_at("train")
    flip_some_bit(run.checkpoints / _NEW / "state.safetensors", seed=3)
    run.go_on()
    progress = json.loads((run.run_dir / "train" / "low" / PROGRESS_FILE).read_text())
    assert f"checkpoint {_NEW} was damaged" in progress["note"]


@pytest.mark.parametrize("name", ["ticket.json", "expert/diffusion_pytorch_model.safetensors"])
def test_a_training_does_not_begin_from_a_damaged_ticket_and_keeps_its_checkpoints(cut_at: CutAt, name: str) -> None:
    run = cut_at("train")
    flip_some_bit(run.run_dir / "draw/low/tickets/low" / name, seed=2)
    with pytest.raises(RunFailed, match=f"{name} is missing or not what the draw wrote. Go on with `ebdiff resume`"):
        run.go_on()
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [_OLD, _NEW]


def test_a_checkpoint_damaged_after_it_was_found_whole_is_not_gone_on_from(
    cut_at: CutAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = checkpoints.load_file

    def damaged(path: Path) -> dict[str, torch.Tensor]:
        if path.parent.name == _NEW:
            flip_some_bit(path, seed=3)
        return load(path)

    monkeypatch.setattr(checkpoints, "load_file", damaged)
    cut_at("train").check_goes_on_from(2)


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


def _harm(ticket: Path, name: str, how: str) -> None:
    if how == "flipped":
        flip_some_bit(ticket / name, seed=5)
    elif how == "cut":
        (ticket / name).write_bytes((ticket / name).read_bytes()[:-3])
    else:
        (ticket / name).unlink()


_OF_A_TICKET = ["ticket.json", "expert/config.json", "expert/diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize(
    "harms",
    [
        *([(name, how)] for name in _OF_A_TICKET for how in ("flipped", "cut", "deleted")),
        [("seal.json", "deleted"), ("expert/diffusion_pytorch_model.safetensors", "flipped")],
        [],  # its whole folder is gone
    ],
    ids=str,
)
def test_a_damaged_ticket_of_a_draw_that_goes_on_is_drawn_again(
    shared: tuple[Path, dict[str, str]], cache_dir: Path, tmp_path: Path, harms: list[tuple[str, str]]
) -> None:
    cut, whole = shared
    run_dir = Path(shutil.copytree(cut, tmp_path / "run"))
    for name, how in harms:
        _harm(run_dir / _TICKET, name, how)
    if not harms:
        shutil.rmtree(run_dir / _TICKET)
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
