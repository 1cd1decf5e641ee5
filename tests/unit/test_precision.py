"""Precision, memory format and compilation: nearly the same training, and each resumes to the same bits.

What torch compiles for real is all here, images of an ensemble too.
"""

import shutil
from pathlib import Path

import pytest
import torch
from ensemble_fixtures import draw, tiny_experts
from test_sparse_training import check_every_step, sparse_plan
from torch._dynamo.utils import counters
from trainer_fixtures import MakeTrainer, largest_difference, make_trainer, state_after

from ebdiff_orchestrator.ensemble import ensemble_of, load_ensemble
from region_workers.training.checkpoints import Checkpoints
from region_workers.training.device import World
from schemas.plan import DiffusionPlan, SamplingPlan

__all__ = ["make_trainer"]

BF16, CHANNELS_LAST, COMPILE = "training.precision=bf16", "training.channels_last=true", "training.compile=true"
ACCUMULATE = "training.gradient_accumulation=2"
QUICK_TO_COMPILE = (
    "model.dropout=0.0",
    "model.add_attention=false",
    "model.block_out_channels=[16]",
    "model.down_block_types=[DownBlock2D]",
    "model.up_block_types=[UpBlock2D]",
)
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="torch.compile needs a C compiler on a CPU")
MODES = [
    (),
    (BF16,),
    (CHANNELS_LAST,),
    (ACCUMULATE,),
    (BF16, CHANNELS_LAST, ACCUMULATE),
    ("training.gradient_clip=null", "training.ema_decay=null"),
    ("training.weight_decay=0.01", "training.ema_warmup=true", "training.cpu_threads=2"),
]


def _check_resume(make_trainer: MakeTrainer, changes: tuple[str, ...], folder: Path) -> None:
    """A trainer that goes on from another's checkpoint, made after 2 steps, is and ends as that one."""
    whole, resumed = make_trainer(*changes), make_trainer(*changes)
    half = state_after(whole, 2)
    checkpoints = Checkpoints(folder, "key", keep=1)
    checkpoints.save(2, 0.0, half, [])
    checkpoints.wait()
    checkpoint = checkpoints.newest_good(World(torch.device("cpu"), 0, 1))
    assert checkpoint is not None
    resumed.load_state_tensors(checkpoint.tensors, checkpoint.info.step)
    del checkpoint
    assert str(folder) not in Path("/proc/self/maps").read_text(), "the file is still mapped: its disk would stay full"
    assert largest_difference(half, resumed.state_tensors()) == 0.0
    end = state_after(whole, 2)
    assert largest_difference(half, end) > 0.0
    assert largest_difference(end, state_after(resumed, 2)) == 0.0
    assert resumed.read_metrics() == whole.read_metrics(), "a row of metrics tells of the steps before the checkpoint"


@pytest.mark.parametrize("changes", MODES, ids=" ".join)
def test_a_resumed_trainer_ends_in_the_same_bits(
    make_trainer: MakeTrainer, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    _check_resume(make_trainer, changes, tmp_path / "checkpoints")


@pytest.mark.parametrize("option", [BF16, CHANNELS_LAST])
def test_precision_and_memory_format_change_bits_and_hardly_the_loss(make_trainer: MakeTrainer, option: str) -> None:
    plain, other = make_trainer(), make_trainer(option)
    assert largest_difference(state_after(plain, 5), state_after(other, 5)) > 0.0
    assert other.read_metrics()[0] == pytest.approx(plain.read_metrics()[0], rel=0.02)


def test_weights_moments_and_ema_are_fp32_in_bf16_training(make_trainer: MakeTrainer) -> None:
    state = state_after(make_trainer(BF16), 1)
    assert {tensor.dtype for name, tensor in state.items() if name != "losses"} == {torch.float32}


# The first of these compiles for half a minute; the others find its kernels, and the compiler warm.


@pytest.mark.slow
@needs_compiler
def test_a_resumed_compiled_trainer_ends_in_the_same_bits(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    _check_resume(make_trainer, (COMPILE, *QUICK_TO_COMPILE), tmp_path / "checkpoints")


@pytest.mark.slow
@needs_compiler
def test_a_compiled_network_trains_to_the_same_loss(make_trainer: MakeTrainer) -> None:
    losses = []
    for changes in ((), (COMPILE,)):
        trainer = make_trainer(*QUICK_TO_COMPILE, *changes)
        state_after(trainer, 1)
        losses.append(trainer.read_metrics()[0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_network_of_a_sparse_training_keeps_as_many_weights_at_every_step(make_trainer: MakeTrainer) -> None:
    check_every_step(make_trainer(*sparse_plan("rigl"), COMPILE, *QUICK_TO_COMPILE), "rigl", 0.6)


@pytest.mark.slow
@needs_compiler
def test_compiled_for_real_an_ensemble_draws_the_same_images_within_rounding(tmp_path: Path) -> None:
    ensemble_of(tiny_experts()[:1], [(0, 1000)], ["all"], DiffusionPlan(), SamplingPlan(steps=6)).save_pretrained(
        tmp_path
    )
    compiled = load_ensemble(tmp_path, compile=True)
    assert torch.allclose(draw(compiled, 0, 1), draw(load_ensemble(tmp_path), 0, 1), atol=1e-4)
    assert counters["inductor"]
