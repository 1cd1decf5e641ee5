"""Masks of weights: how many each layer keeps, by hand for published networks, and which an update takes and gives."""

import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from ebdiff_orchestrator.plans.load import load_plan
from region_workers.networks.costs import weight_macs
from region_workers.networks.dense import build_dense
from region_workers.networks.drawing_gru import DrawingGRU
from region_workers.pruning.weight_masks import densities, kept_counts, maskable_shapes, moved_mask, random_mask
from schemas.experiment import Distribution

_WEIGHTS = 100_000  # a sample has every seventh


def _values(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(_WEIGHTS, generator=generator)
    place = torch.arange(_WEIGHTS)
    if kind == "few different":
        return values.round()
    if kind == "sorted":
        return values.sort().values
    if kind == "the sample the smallest":
        return torch.where(place % 7 == 0, 0.01 * values, values.abs() + 1)
    return values


@pytest.mark.parametrize("exchanged", [1, 700, 20_000, 50_000])
@pytest.mark.parametrize("growth", ["any", "few different", "sorted", "the sample the smallest"])
@pytest.mark.parametrize("weights", ["any", "few different", "sorted", "the sample the smallest"])
def test_the_smallest_leave_and_the_largest_come_of_equals_the_first(weights: str, growth: str, exchanged: int) -> None:
    mask = random_mask(torch.Size([_WEIGHTS]), 50_000, torch.Generator().manual_seed(1))
    moved = moved_mask(mask, _values(weights), exchanged, _values(growth).flip(0))
    assert torch.equal(moved, _by_sorting(mask, _values(weights), exchanged, _values(growth).flip(0)))


@pytest.mark.parametrize("few_are_kept", [True, False])
def test_so_few_that_the_sample_has_none_of_them_are_found(few_are_kept: bool) -> None:
    mask = torch.isin(torch.arange(_WEIGHTS), torch.tensor([1, 2, 3, 8])) == few_are_kept
    moved = moved_mask(mask, _values("any"), 1, _values("any").flip(0))
    assert torch.equal(moved, _by_sorting(mask, _values("any"), 1, _values("any").flip(0)))


def test_at_random_any_places_are_as_likely_as_any_others() -> None:
    mask, generator = torch.arange(6) < 3, torch.Generator().manual_seed(2)
    found = Counter(tuple(moved_mask(mask, torch.ones(6), 3, generator).tolist()) for _ in range(4000))
    assert len(found) == 20  # all threes of six
    assert max(abs(often - 200) for often in found.values()) < 5 * 200**0.5


@pytest.mark.parametrize("exchanged", [0, 1, 700, 20_000, 50_000])
def test_at_random_the_largest_stay_and_so_many_come_from_everywhere(exchanged: int) -> None:
    mask, weights = torch.arange(_WEIGHTS) % 2 == 0, _values("any")
    moved = moved_mask(mask, weights, exchanged, torch.Generator().manual_seed(2))
    assert moved.count_nonzero() == 50_000
    came = moved & ~mask
    expected = exchanged * 25_000 / (50_000 + exchanged)
    assert abs(came[:50_000].count_nonzero() - expected) <= 5 * expected**0.5
    assert abs(came[50_000:].count_nonzero() - expected) <= 5 * expected**0.5
    largest = torch.where(mask, weights.abs(), -1).topk(50_000 - exchanged).indices
    assert moved[largest].all()


def _by_sorting(mask: Tensor, weights: Tensor, exchanged: int, growth: Tensor) -> Tensor:
    kept = mask.numpy()
    by_weight = np.lexsort((np.arange(_WEIGHTS), -weights.abs().numpy(), ~kept))  # kept ones first, the largest of them
    stay = np.zeros(_WEIGHTS, dtype=bool)
    stay[by_weight[: kept.sum() - exchanged]] = True
    by_growth = np.lexsort((np.arange(_WEIGHTS), -growth.abs().numpy(), stay))
    stay[by_growth[:exchanged]] = True
    return torch.from_numpy(stay)


@pytest.fixture(scope="module")
def ldm() -> UNet2DModel:
    """CompVis/latent-diffusion's unconditional network of VQ-f4 latents."""
    plan = load_plan("lsun-bedroom256-ldm")
    with torch.device("meta"):
        network = build_dense(plan.model, plan.data)
    assert isinstance(network, UNet2DModel)
    return network


@pytest.fixture(scope="module")
def original(ldm: UNet2DModel) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Shapes and MACs as the original code has them: the queries, keys and values of an attention are one layer."""
    shapes: dict[str, tuple[int, ...]] = {}
    macs: dict[str, int] = {}
    costs = weight_macs(ldm)
    for name, shape in maskable_shapes(ldm).items():
        fused = re.sub("to_[qkv]", "qkv", name)
        shapes[fused] = shape if fused == name else (3 * shape[0], *shape[1:])
        macs[fused] = macs.get(fused, 0) + costs[name]
    return shapes, macs


def test_every_convolution_and_linear_weight_can_be_masked(
    ldm: UNet2DModel, original: tuple[dict[str, tuple[int, ...]], dict[str, int]]
) -> None:
    shapes, macs = original
    assert len(shapes) == 123
    assert len(maskable_shapes(ldm)) == 123 + 32
    assert sum(map(math.prod, shapes.values())) == pytest.approx(273.87e6, rel=1e-4)
    assert sum(map(math.prod, maskable_shapes(ldm).values())) == sum(map(math.prod, shapes.values()))
    assert sum(parameter.numel() for parameter in ldm.parameters()) == pytest.approx(274.06e6, rel=1e-4)
    assert sum(macs.values()) == pytest.approx(96.02e9, rel=1e-3)


@pytest.mark.parametrize(
    ("sparsity", "distribution", "macs", "dense_layers"),
    [
        (0.10, "erk", 0.974, 106),
        (0.25, "erk", 0.908, 95),
        (0.50, "erk", 0.675, 81),
        (0.75, "erk", 0.288, 42),
        (0.90, "erk", 0.124, 2),
        (0.10, "er", 0.975, 75),
        (0.25, "er", 0.925, 48),
        (0.50, "er", 0.753, 24),
        (0.75, "er", 0.440, 2),
        (0.90, "er", 0.176, 2),
        (0.25, "uniform", 0.75, 0),
        (0.90, "uniform", 0.10, 0),
    ],
)
def test_layers_are_as_dense_and_as_costly_as_worked_out(
    original: tuple[dict[str, tuple[int, ...]], dict[str, int]],
    sparsity: float,
    distribution: Distribution,
    macs: float,
    dense_layers: int,
) -> None:
    shapes, cost = original
    found = densities(shapes, sparsity, distribution)
    counts = kept_counts(shapes, sparsity, distribution)
    assert sum(counts.values()) == pytest.approx((1 - sparsity) * 273.87e6, rel=1e-4)
    assert sum(density == 1 for density in found.values()) == dense_layers
    assert sum(found[name] * cost[name] for name in shapes) / sum(cost.values()) == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize(
    ("sparsity", "first_input", "first_own", "projection"),
    [(0.25, 1, 0.93, 1), (0.5, 1, 0.61, 0.69), (0.75, 1, 0.29, 0.33), (0.9, 0.64, 0.11, 0.13)],
)
def test_a_recurrent_network_is_as_dense_as_worked_out(
    sparsity: float, first_input: float, first_own: float, projection: float
) -> None:
    shapes = maskable_shapes(DrawingGRU(frequencies=[1.0] * 4))
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (14, 413_304)
    found = densities(shapes, sparsity, "er")
    for direction in range(2):
        assert found[f"layers.0.input.{direction}.weight"] == pytest.approx(first_input, abs=0.006)
        assert found[f"layers.0.recurrent.{direction}.weight"] == pytest.approx(first_own, abs=0.006)
    assert found["out_proj.weight"] == pytest.approx(projection, abs=0.006)
    assert found["final.weight"] == 1


@pytest.mark.parametrize("distribution", ["erk", "er", "uniform"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.999])
def test_all_layers_together_keep_what_is_asked_for(sparsity: float, distribution: Distribution) -> None:
    shapes = {"convolution": (8, 4, 3, 3), "linear": (16, 8), "its twin": (16, 8), "tiny": (1, 2)}
    found = densities(shapes, sparsity, distribution)
    total = sum(map(math.prod, shapes.values()))
    assert sum(found[name] * math.prod(shape) for name, shape in shapes.items()) == pytest.approx(
        (1 - sparsity) * total
    )
    assert all(0 < density <= 1 for density in found.values())
    assert found["linear"] == found["its twin"]
