"""One step of training: what each option does, and that a bad loss stops it before the update."""

import pytest
import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import profile
from trainer_fixtures import MakeTrainer, largest_difference, make_trainer, state_after

from region_workers.training.failures import message_for_people
from region_workers.training.family import UNetFamily
from region_workers.training.trainer import NonFiniteLossError, Trainer, ema_decay
from schemas.plan import TrainingPlan

__all__ = ["make_trainer"]

_PLAIN = ("model.dropout=0.0", "training.ema_decay=0.75")


def test_the_same_steps_give_the_same_bits_and_another_seed_others(make_trainer: MakeTrainer) -> None:
    first = state_after(make_trainer(), 3)
    assert largest_difference(first, state_after(make_trainer(), 3)) == 0.0
    assert largest_difference(first, state_after(make_trainer("seed=1"), 3)) > 0.0


@pytest.mark.parametrize(
    "changes",
    [
        ("training.gradient_clip=null",),
        ("training.gradient_clip=1.0", "training.weight_decay=0.1"),
        ("training.gradient_clip=1.0", "training.gradient_accumulation=4"),
        ("training.gradient_clip=1.0", "training.timesteps.weighting=min-snr"),
    ],
)
def test_three_steps_are_those_of_the_written_out_equation(make_trainer: MakeTrainer, changes: tuple[str, ...]) -> None:
    expected, losses, norm = _written_out(make_trainer(*_PLAIN, *changes), steps=3)
    trainer = make_trainer(*_PLAIN, *changes)
    trainer.train_step()
    assert trainer.read_metrics()[0] == pytest.approx(losses[0], rel=1e-4)
    state_after(trainer, 2)
    loss, gradient_norm = trainer.read_metrics()
    assert loss == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-4)
    assert gradient_norm == pytest.approx(norm, rel=1e-3)
    assert trainer.ema is not None
    for name, (weights, ema) in expected.items():
        if not name.endswith("to_k.bias"):  # its gradient is zero but for rounding, which Adam blows up
            assert torch.allclose(trainer.parameters[name], weights, rtol=0, atol=1e-4), name
            assert torch.allclose(trainer.ema[name], ema, rtol=0, atol=1e-4), name


def _written_out(parts: Trainer, steps: int) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], list[float], float]:
    """Weights and EMA by name, each step's loss and the last gradient's norm, by plain PyTorch."""
    training, network = parts.training, parts.network
    weights = dict(network.named_parameters())
    ema = {name: parameter.detach().clone() for name, parameter in weights.items()}
    kind = torch.optim.AdamW if training.weight_decay else torch.optim.Adam
    optimizer = kind(weights.values(), lr=training.learning_rate, weight_decay=training.weight_decay)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    snr = alpha_bar / (1 - alpha_bar)
    count = torch.ones(1000) if training.timesteps.weighting == "none" else snr.clamp(max=5).div(snr).float()
    losses, norm = [], 0.0
    for step in range(steps):
        generator = parts.randomness.generator(step)
        start, stop = parts.sampler.span
        half = torch.randint(start, stop, (training.batch_size // 2 + 1,), generator=generator)
        t = torch.cat([half, start + stop - 1 - half])[: training.batch_size]
        clean = parts.family.batch(step, slice(0, training.batch_size)).clean
        noise = torch.randn(clean.shape, generator=generator)
        kept = alpha_bar[t].float().view(-1, 1, 1, 1)
        predicted = network(kept.sqrt() * clean + (1 - kept).sqrt() * noise, t).sample
        loss = (count[t] * (predicted - noise).square().sum(dim=(1, 2, 3))).mean()
        optimizer.zero_grad()
        loss.backward()
        most = training.gradient_clip or float("inf")
        norm = float(nn.utils.clip_grad_norm_(weights.values(), most))
        optimizer.step()
        for name, parameter in weights.items():
            ema[name] = 0.75 * ema[name] + 0.25 * parameter.detach()
        losses.append(float(loss.detach()))
    return {name: (parameter.detach(), ema[name]) for name, parameter in weights.items()}, losses, norm


@pytest.mark.parametrize(("clip", "step"), [("1.0", 0), ("1.0", 2), ("null", 2)])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_step(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, clip: str, step: int
) -> None:
    trainer = make_trainer(f"training.gradient_clip={clip}")
    before = _weights(state_after(trainer, step))
    true_prediction = UNetFamily.predict
    monkeypatch.setattr(UNetFamily, "predict", lambda self, *inputs: true_prediction(self, *inputs) * float("nan"))
    trainer.train_step()
    monkeypatch.setattr(UNetFamily, "predict", true_prediction)
    trainer.train_step()
    assert largest_difference(before, _weights(trainer.state_tensors())) == 0.0
    with pytest.raises(NonFiniteLossError, match=f"step {step} "):
        trainer.read_metrics()


@pytest.mark.parametrize("clip", ["1.0", "null"])
def test_a_gradient_that_is_not_finite_stops_before_the_update_though_the_loss_is(
    make_trainer: MakeTrainer, clip: str
) -> None:
    trainer = make_trainer(f"training.gradient_clip={clip}")
    before = _weights(state_after(trainer, 1))
    last = list(trainer.parameters.values())[-1]
    hook = last.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    trainer.train_step()
    hook.remove()
    assert largest_difference(before, _weights(trainer.state_tensors())) == 0.0
    with pytest.raises(NonFiniteLossError, match="step 1 "):
        trainer.check_finite()


def test_a_batch_that_the_host_has_no_memory_for_is_told_with_a_remedy() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    for error in (raised.value, MemoryError()):
        assert "ran out of memory. Lower training.batch_size" in message_for_people(error)


def test_the_ema_follows_its_warm_up_and_then_its_rate() -> None:
    training = TrainingPlan(ema_decay=0.9, ema_warmup=True)
    assert ema_decay(0, training) == pytest.approx(0.1)
    assert ema_decay(8, training) == pytest.approx(0.5)
    assert ema_decay(10_000, training) == 0.9
    assert ema_decay(0, TrainingPlan(ema_decay=0.9)) == 0.9


def test_training_lowers_the_loss(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("training.batch_size=32", "model.dropout=0.0")
    state_after(trainer, 5)
    early = trainer.read_metrics()[0]
    state_after(trainer, 60)
    trainer.read_metrics()
    state_after(trainer, 5)
    assert trainer.read_metrics()[0] < 0.8 * early


def test_other_weights_are_used_only_for_a_while(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    before = [parameter.clone() for parameter in trainer.parameters.values()]
    with trainer.using_weights({name: torch.zeros_like(p) for name, p in trainer.parameters.items()}):
        assert all(not parameter.any() for parameter in trainer.parameters.values())
    after = list(trainer.parameters.values())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(isinstance(p, nn.Parameter) for p in after)


@pytest.mark.parametrize("changes", [(), ("training.precision=bf16", "training.gradient_accumulation=2")])
def test_no_step_reads_a_value_of_the_device_until_the_metrics_are_read(
    make_trainer: MakeTrainer, changes: tuple[str, ...]
) -> None:
    trainer = make_trainer("training.ema_warmup=true", *changes)
    trainer.train_step()
    with profile() as steps:
        trainer.train_step()
        trainer.train_step()
    assert not _values_read(steps)
    with profile() as metrics:
        trainer.read_metrics()
    assert _values_read(metrics)


def _weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith("weights.")}


def _values_read(profiler: profile) -> list[str]:
    """Where tensors became Python values; without fused Adam's CPU kernel, whose step counts are the host's own."""
    kinds = ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero")
    return [event.name for event in profiler.events() if event.name in kinds and not _in_fused_adam(event)]


def _in_fused_adam(event: FunctionEvent) -> bool:
    parent = event.cpu_parent
    return parent is not None and (parent.name == "aten::_fused_adam_" or _in_fused_adam(parent))
