"""The code of a GPU where there is none: tensors that know their shape, dtype and device, and refuse a second device.

Without a driver torch gives no backward pass to a pretended CUDA tensor, so this is an accelerator that torch lets a
Python program declare. It shows what is left on the host or sent to the wrong device. It does not show bf16, pinned
memory and what else is CUDA's own, nor what reads numbers off the device: checks for non-finite losses, diff-pruning's
threshold, sparse masks, drawings' lengths, a batch whose timesteps have several owners.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import (
    FakeTensorDeviceMismatchError,  # type: ignore[attr-defined]
    FakeTensorMode,
    unset_fake_temporarily,
)

from ebdiff_orchestrator.ensemble.pipeline import EnsemblePipeline
from ebdiff_orchestrator.ensemble.router import TimestepRouter
from ebdiff_orchestrator.ensemble.scheduler import ListDDIMScheduler
from ebdiff_orchestrator.plans.load import plan_from_values
from region_workers.networks.dense import build_dense
from region_workers.networks.supported import network_inputs
from region_workers.pruning.groups import find_groups
from region_workers.training import timesteps
from region_workers.training.device import World
from region_workers.training.family import ModelFamily, family_of
from region_workers.training.masks import mask_maker
from region_workers.training.randomness import StepRandomness
from region_workers.training.timesteps import TimestepSampler
from region_workers.training.timing import random_samples, timing_job
from region_workers.training.trainer import Trainer
from schemas.plan import Plan
from tests.unit.test_family import FAMILIES

ACCELERATOR = torch.device("privateuseone", 0)
IMAGES = [name for name in FAMILIES if name != "drawings"]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "channels last": {"training": {"channels_last": True}},
    "accumulation and dropout": {"training": {"gradient_accumulation": 2}, "model": {"dropout": 0.1}},
    "AdamW, decay, no clip": {"training": {"weight_decay": 0.01, "learning_rate_decay": 0.9, "gradient_clip": None}},
    "SpeeD": {"training": {"timesteps": {"sampling": "speed", "weighting": "speed"}}},
    "Min-SNR": {"training": {"timesteps": {"weighting": "min-snr"}}},
}
STEPS = [(IMAGES[0], option) for option in OPTIONS] + [(name, "accumulation and dropout") for name in IMAGES[1:]]
IMPORTANCES = [(IMAGES[0], "magnitude"), (IMAGES[0], "random"), *((name, "taylor") for name in IMAGES)]


class _Generator:
    """Of a device that makes no numbers."""

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device(device)

    def manual_seed(self, seed: int) -> _Generator:
        return self


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All new tensors are pretended; a random draw must be on its generator's device; modules are where they began."""
    _declare_accelerator()
    for name in ("randn", "rand", "randint", "randperm"):
        monkeypatch.setattr(torch, name, partial(_draw, getattr(torch, name)))
    monkeypatch.setattr(timesteps, "dual_centre", _not_pretended(timesteps.dual_centre))
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *args, **kwargs: module)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def _declare_accelerator() -> None:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    if not hasattr(torch, "pretended_device"):
        _setup_privateuseone_for_python_backend("pretended_device")
        torch.pretended_device.get_amp_supported_dtype = lambda: [torch.bfloat16]  # type: ignore[attr-defined]


def _not_pretended(function: Callable[..., Any]) -> Callable[..., Any]:
    """For what reads the numbers that it computes."""

    def call(*args: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args)

    return call


def _draw(real: Any, *args: Any, generator: _Generator | None = None, **options: Any) -> torch.Tensor:
    device = torch.device(options.get("device") or "cpu")
    assert generator is None or generator.device == device
    if generator is None and device.type == "cpu" and "device" in options:  # numbers of a config, which are read
        with unset_fake_temporarily():
            return real(*args, **options)  # type: ignore[no-any-return]
    return real(*args, **options)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "option"), STEPS)
def test_a_training_step_keeps_to_the_device(name: str, option: str, pretended: None) -> None:
    trainer, _ = _trainer(_plan(name, OPTIONS[option]))
    trainer.train_step()
    elsewhere = {name for name, tensor in trainer.state_tensors().items() if tensor.device != ACCELERATOR}
    assert elsewhere == {"losses"}  # a number of the host's


@pytest.mark.parametrize(("name", "importance"), IMPORTANCES)
def test_a_mask_is_computed_where_the_weights_are(name: str, importance: str, pretended: None) -> None:
    plan = _plan(name, {"draw": {"importance": importance, "importance_timesteps": 2}})
    trainer, _ = _trainer(plan)
    groups = find_groups(trainer.network, network_inputs(trainer.network))
    mask_at = mask_maker(groups, trainer, plan.draw, lambda: None)
    assert mask_at(0.5).device == ACCELERATOR


@pytest.mark.parametrize("name", IMAGES)
def test_the_router_and_a_step_of_the_scheduler_keep_to_the_device(name: str, pretended: None) -> None:
    plan = _plan(name, {})
    with ACCELERATOR:
        experts = [build_dense(plan.model, plan.data) for _ in range(2)]
    router = TimestepRouter(experts, [(0, 500), (500, 1000)], ["early", "late"])
    labels = {"class_labels": torch.zeros(2, dtype=torch.int64, device=ACCELERATOR)} if plan.model.num_classes else {}
    sample = torch.zeros(2, *FAMILIES[name][1], device=ACCELERATOR)
    with unset_fake_temporarily():
        scheduler = ListDDIMScheduler(num_inference_steps=4, eta=1.0)
        scheduler.set_timesteps(4)
    predicted = router(sample, 700, **labels).sample
    following = scheduler.step(predicted, scheduler._list[0], sample, generator=_Generator(ACCELERATOR)).prev_sample
    assert (predicted.device, following.device) == (ACCELERATOR, ACCELERATOR)
    assert EnsemblePipeline(router, scheduler)._execution_device == ACCELERATOR


def test_what_is_left_on_the_host_is_found(pretended: None) -> None:
    trainer, family = _trainer(_plan("pixels", {}))
    family.alphas_cumprod = torch.zeros(1000)
    with pytest.raises(FakeTensorDeviceMismatchError):
        trainer.train_step()


def _trainer(plan: Plan) -> tuple[Trainer, ModelFamily]:
    family = family_of(timing_job(plan), random_samples(plan, 4), ACCELERATOR, data_seed=0)
    randomness = StepRandomness(0, "train", (0, 1000), ACCELERATOR)
    sampler = TimestepSampler((0, 1000), plan.training.timesteps, plan.diffusion, ACCELERATOR)
    with ACCELERATOR:
        network = family.build_dense()
    return Trainer(network, family, randomness, sampler, plan.training, World(ACCELERATOR, 0, 1)), family


def _plan(name: str, option: dict[str, Any]) -> Plan:
    model, (channels, *_) = FAMILIES[name]
    label_column = {"label_column": "label"} if "num_classes" in model else {}
    training = {"batch_size": 4, "steps": 10, "ema_decay": 0.9, "gradient_clip": 1.0}
    return plan_from_values(
        {
            "name": "seam",
            "model": {**copy.deepcopy(model), **option.get("model", {})},
            "data": {"path": "samples", "resolution": 8, "channels": channels, "random_flip": True, **label_column},
            "training": {**training, **option.get("training", {})},
            "regions": [{"train": [0, 1000], "pruning_ratio": 0.5}],
            **{key: value for key, value in option.items() if key not in ("model", "training")},
        }
    )


if __name__ == "__main__":
    sys.exit(pytest.main(["-n", "0", "-q", "-p", "no:cacheprovider", __file__]))
