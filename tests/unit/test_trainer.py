"""One step of training: what each option does, and that a bad loss stops it before the update."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from region_workers.data.store import ensure_store
from region_workers.device import World, prepare_process
from region_workers.failures import NonFiniteLossError
from region_workers.family import UNetFamily
from region_workers.randomness import StepRandomness
from region_workers.timesteps import TimestepLaw
from region_workers.trainer import Trainer, ema_decay
from schemas.job import WorkerJob
from schemas.plan import Plan, TrainingPlan

MakePlan = Callable[..., Plan]
MakeJobs = Callable[[Plan, Path], list[WorkerJob]]
MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(tiny_plan: MakePlan, make_jobs: MakeJobs, cache_dir: Path, tmp_path: Path) -> MakeTrainer:
    def make(*changes: str) -> Trainer:
        plan = tiny_plan(*changes)
        job = make_jobs(plan, tmp_path)[0]
        assert job.draw is not None
        prepare_process(plan.training)
        world = World(torch.device("cpu"), 0, 1)
        randomness = StepRandomness(plan.seed, "draw", job.draw.timesteps, world.device)
        family = UNetFamily(job, ensure_store(plan.data, cache_dir), world.device, randomness.seed_for("data"))
        torch.manual_seed(0)
        law = TimestepLaw(job.draw.timesteps, plan.training.timesteps, plan.diffusion, world.device)
        return Trainer(family.build_dense(), family, randomness, law, plan.training, world)

    return make


def _weights_after(trainer: Trainer, steps: int) -> dict[str, torch.Tensor]:
    for _ in range(steps):
        trainer.advance()
    return {name: tensor.clone() for name, tensor in trainer.state_tensors().items()}


def _largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_the_same_steps_give_the_same_bits_and_another_seed_others(make_trainer: MakeTrainer) -> None:
    first = _weights_after(make_trainer(), 3)
    assert _largest_difference(first, _weights_after(make_trainer(), 3)) == 0.0
    assert _largest_difference(first, _weights_after(make_trainer("seed=1"), 3)) > 0.0


def test_a_trainer_loaded_from_its_state_goes_on_to_the_same_bits(make_trainer: MakeTrainer) -> None:
    whole = _weights_after(make_trainer(), 5)
    first, second = make_trainer(), make_trainer()
    second.load_state_tensors(_weights_after(first, 2), step=2)
    assert _largest_difference(_weights_after(second, 3), whole) == 0.0


def test_accumulated_passes_give_the_gradient_of_the_whole_batch(make_trainer: MakeTrainer) -> None:
    options = ("model.dropout=0.0", "training.gradient_clip=null")
    one = _weights_after(make_trainer(*options), 1)
    four = _weights_after(make_trainer(*options, "training.gradient_accumulation=4"), 1)
    names = [name for name in one if name.startswith("exp_avg.")]
    assert names
    for name in names:
        assert torch.allclose(one[name], four[name], rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("option", ["training.precision=bf16", "training.channels_last=true"])
def test_precision_and_memory_format_train_to_nearly_the_same_loss(make_trainer: MakeTrainer, option: str) -> None:
    losses = []
    for changes in ((), (option,)):
        trainer = make_trainer(*changes)
        _weights_after(trainer, 5)
        losses.append(trainer.read_metrics()[0])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="torch.compile needs a C compiler on a CPU")
def test_a_compiled_network_trains_to_the_same_loss(make_trainer: MakeTrainer) -> None:
    losses = []
    for changes in ((), ("training.compile=true",)):
        trainer = make_trainer("model.dropout=0.0", "model.down_block_types=[DownBlock2D, DownBlock2D]", *changes)
        _weights_after(trainer, 1)
        losses.append(trainer.read_metrics()[0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("clip", ["1.0", "null"])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_step(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, clip: str
) -> None:
    trainer = make_trainer(f"training.gradient_clip={clip}")
    before = {n: t for n, t in _weights_after(trainer, 2).items() if not n.startswith("ema.")}
    true_errors = UNetFamily.errors
    monkeypatch.setattr(UNetFamily, "errors", lambda self, *inputs: true_errors(self, *inputs) * float("nan"))
    trainer.advance()
    monkeypatch.setattr(UNetFamily, "errors", true_errors)
    trainer.advance()
    after = {n: t for n, t in trainer.state_tensors().items() if not n.startswith("ema.")}
    assert _largest_difference(before, after) == 0.0
    with pytest.raises(NonFiniteLossError, match="step 2 "):
        trainer.read_metrics()


def test_the_ema_follows_its_warm_up_and_then_its_rate() -> None:
    training = TrainingPlan(ema_decay=0.9, ema_warmup=True)
    assert ema_decay(0, training) == pytest.approx(0.1)
    assert ema_decay(8, training) == pytest.approx(0.5)
    assert ema_decay(10_000, training) == 0.9
    assert ema_decay(0, TrainingPlan(ema_decay=0.9)) == 0.9


def test_the_ema_is_the_average_its_decay_says(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("training.ema_decay=0.75")
    assert trainer.ema is not None
    start = {name: value.clone() for name, value in trainer.ema.items()}
    trainer.advance()
    for name, parameter in trainer.parameters.items():
        assert torch.allclose(trainer.ema[name], 0.75 * start[name] + 0.25 * parameter.detach(), atol=1e-6)


def test_training_lowers_the_loss(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("training.batch_size=32", "model.dropout=0.0")
    _weights_after(trainer, 5)
    early = trainer.read_metrics()[0]
    _weights_after(trainer, 60)
    trainer.read_metrics()
    _weights_after(trainer, 5)
    assert trainer.read_metrics()[0] < 0.8 * early


def test_other_weights_are_used_only_for_a_while(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    before = [parameter.clone() for parameter in trainer.parameters.values()]
    with trainer.using_weights({name: torch.zeros_like(p) for name, p in trainer.parameters.items()}):
        assert all(not parameter.any() for parameter in trainer.parameters.values())
    after = list(trainer.parameters.values())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(isinstance(p, nn.Parameter) for p in after)
