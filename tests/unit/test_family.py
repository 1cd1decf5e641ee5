"""The seam of model families: whatever is denoised, the loop gets a network, a batch and a prediction of its noise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ebdiff_orchestrator.plans.load import plan_from_values
from region_workers.training.family import UNetFamily
from region_workers.training.timing import random_samples, timing_job

_NETWORK = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 2}
_BLOCKS = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
_LATENT = {**_NETWORK, **_BLOCKS, "family": "latent", "vae": "vae", "latent_channels": 3, "latent_downscale": 2}
_CLASSES = {"num_classes": 3, "label_dropout": 0.2}
FAMILIES: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "pixels": (_NETWORK, (1, 8, 8)),
    "pixels with classes": ({**_NETWORK, **_CLASSES}, (1, 8, 8)),
    "latents": (_LATENT, (3, 4, 4)),
    "latents with classes": ({**_LATENT, **_CLASSES}, (3, 4, 4)),
}
OPTIONS = [{}, {"precision": "bf16"}, {"channels_last": True}]


@pytest.mark.parametrize("training", OPTIONS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_what_the_loop_asks_for(name: str, training: dict[str, Any]) -> None:
    model, shape = FAMILIES[name]
    family = _family(model, training)
    torch.manual_seed(0)
    network = family.build_dense().eval()
    whole, rows = family.batch(1, slice(None)), slice(2, 4)
    part = family.batch(1, rows)
    assert (whole.clean.shape, whole.clean.dtype) == ((4, *shape), torch.float32)
    assert torch.equal(part.clean, whole.clean[rows])
    assert (part.labels is None) == ("num_classes" not in model)
    if part.labels is not None and whole.labels is not None:
        assert torch.equal(part.labels, whole.labels[rows])
    if "channels_last" in training:
        assert whole.clean.is_contiguous(memory_format=torch.channels_last)
    predicted = family.predict(network, part, part.clean, torch.tensor([10, 500]))
    assert predicted.shape == part.clean.shape
    assert predicted.dtype == (torch.bfloat16 if "precision" in training else torch.float32)
    assert set(family.example_inputs(network)) >= {"sample", "timestep"}
    assert family.steps_per_epoch == 1


def _family(model: dict[str, Any], training: dict[str, Any]) -> UNetFamily:
    label_column = {"label_column": "label"} if "num_classes" in model else {}
    values = {
        "name": "seam",
        "model": copy.deepcopy(model),
        "data": {"path": "images", "resolution": 8, "channels": 3 if "vae" in model else 1, **label_column},
        "training": {"batch_size": 4, "steps": 1, **training},
        "regions": [{"train": [0, 1000], "pruning_ratio": 0.5}],
    }
    plan = plan_from_values(values)
    return UNetFamily(timing_job(plan), random_samples(plan, 4), torch.device("cpu"), data_seed=0)
