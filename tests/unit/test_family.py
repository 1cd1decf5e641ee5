"""The seam of model families: whatever is denoised, the loop gets a network, a batch and a prediction of its noise."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from ebdiff_orchestrator.plans.load import plan_from_values
from region_workers.data.samples import DrawingSamples
from region_workers.networks.supported import network_inputs
from region_workers.training.diffusion import diffusion_loss
from region_workers.training.family import ModelFamily, family_of
from region_workers.training.timing import random_samples, timing_job

_NETWORK = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 2}
_BLOCKS = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
_LATENT = {**_NETWORK, **_BLOCKS, "family": "latent", "vae": "vae", "latent_channels": 3, "latent_downscale": 2}
_CLASSES = {"num_classes": 3, "label_dropout": 0.2}
_VECTOR = {"family": "vector", "hidden_size": 8, "num_layers": 2}
FAMILIES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "pixels": (_NETWORK, (1, 8, 8)),
    "pixels with classes": ({**_NETWORK, **_CLASSES}, (1, 8, 8)),
    "latents": (_LATENT, (3, 4, 4)),
    "latents with classes": ({**_LATENT, **_CLASSES}, (3, 4, 4)),
    "drawings": (_VECTOR, (7, 3)),
}
LENGTHS = [7, 3, 5, 1]
OPTIONS: list[dict[str, Any]] = [{}, {"precision": "bf16"}, {"channels_last": True}]
CASES = [(name, training) for name in FAMILIES for training in OPTIONS if name != "drawings" or not training]


@pytest.mark.parametrize(("name", "training"), CASES, ids=str)
def test_every_family_gives_what_the_loop_asks_for(name: str, training: dict[str, Any]) -> None:
    model, shape = FAMILIES[name]
    family = _family(model, training)
    torch.manual_seed(0)
    network = family.build_dense().eval()
    whole, rows = family.batch(1, slice(None)), slice(2, 4)
    part = family.batch(1, rows)
    assert (whole.clean.shape, whole.clean.dtype) == ((4, *shape), torch.float32)
    assert torch.equal(part.clean, whole.clean[rows])
    for of_the_part, of_the_whole in zip(part[1:], whole[1:], strict=True):
        assert (of_the_part is None) == (of_the_whole is None)
        assert of_the_part is None or torch.equal(of_the_part, of_the_whole[rows])
    assert (part.labels is None) == ("num_classes" not in model)
    if "channels_last" in training:
        assert whole.clean.is_contiguous(memory_format=torch.channels_last)
    predicted = family.predict(network, part, part.clean, torch.tensor([10, 500]))
    assert predicted.shape == part.clean.shape
    assert predicted.dtype == (torch.bfloat16 if "precision" in training else torch.float32)
    assert set(network_inputs(network)) >= {"sample", "timestep"}
    assert family.steps_per_epoch == 1


def test_a_drawings_loss_is_the_mean_over_its_values_and_none_of_the_padding() -> None:
    batch = _family(_VECTOR, {}).batch(0, slice(None))
    noise = torch.randn(batch.clean.shape)
    loss = diffusion_loss(
        lambda noisy, timesteps: torch.zeros_like(noisy),
        batch.clean,
        torch.zeros(4, dtype=torch.long),
        noise,
        torch.ones(1),
        value_weights=batch.value_weights,
    )
    assert batch.lengths is not None
    assert sorted(batch.lengths.tolist()) == sorted(LENGTHS)
    of_each = [drawing[:length].square().mean() for drawing, length in zip(noise, batch.lengths, strict=True)]
    assert loss.item() == pytest.approx(torch.stack(of_each).mean().item())


def test_the_network_of_drawings_knows_how_long_those_of_the_training_are() -> None:
    network: Any = _family(_VECTOR, {}).build_dense()
    assert network.config.num_train_timesteps == 1000
    assert network.config.length_counts == [0, 1, 0, 1, 0, 1, 0, 1]
    again = type(network).from_config(network.config)
    assert (again.config.frequencies, again.config.length_counts) == (
        network.config.frequencies,
        network.config.length_counts,
    )


def _family(model: dict[str, Any], training: dict[str, Any]) -> ModelFamily:
    label_column = {"label_column": "label"} if "num_classes" in model else {}
    images = {"resolution": 8, "channels": 3 if "vae" in model else 1, **label_column}
    values = {
        "name": "seam",
        "model": copy.deepcopy(model),
        "data": {"path": "samples", **({"drawings": {}} if model is _VECTOR else images)},
        "training": {"batch_size": 4, "steps": 1, **training},
        "regions": [{"train": [0, 1000], "pruning_ratio": 0.5}],
    }
    plan = plan_from_values(values)
    samples = _drawings() if model is _VECTOR else random_samples(plan, 4)
    return family_of(timing_job(plan), samples, torch.device("cpu"), data_seed=0)


def _drawings() -> DrawingSamples:
    rows = np.random.default_rng(0).standard_normal((sum(LENGTHS), 3), dtype=np.float32)
    return DrawingSamples(rows, np.cumsum([0, *LENGTHS]))
