"""The paper's parameters and multiply-accumulates at every pruning ratio, within 1%."""

from __future__ import annotations

import pytest

from region_workers.costs import region_costs
from schemas.model import PixelModelPlan
from schemas.plan import DataPlan

CIFAR10 = (
    PixelModelPlan(
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=32,
        dropout=0.1,
    ),
    DataPlan(resolution=32, channels=3),
)
CELEBA = (
    PixelModelPlan(
        block_out_channels=(128, 256, 256, 256, 512),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=32,
        dropout=0.1,
    ),
    DataPlan(resolution=64, channels=3),
)
# Millions of parameters, billions of multiply-accumulates (one image, torch-pruning's counter).
CIFAR10_COSTS = {
    0.0: (35.75, 6.064),
    0.3: (19.85, 3.392),
    0.4: (14.32, 2.736),
    0.5: (8.97, 1.520),
    0.6: (8.59, 1.490),
    0.7: (5.12, 1.076),
    0.8: (2.16, 0.375),
    0.9: (0.66, 0.195),
}
CELEBA_COSTS = {
    0.0: (78.70, 23.922),
    0.3: (43.74, 13.321),
    0.5: (19.71, 5.997),
    0.6: (16.65, 5.760),
    0.8: (4.76, 1.459),
}
ROUTES = (240, 200, 560)  # timesteps of [0, 240), [240, 440), [440, 1000)


@pytest.mark.parametrize(("ratio", "expected"), CIFAR10_COSTS.items())
def test_cifar10_networks_cost_what_the_rule_says(ratio: float, expected: tuple[float, float]) -> None:
    costs = region_costs(*CIFAR10, ratio)
    assert (costs.params / 1e6, costs.macs / 1e9) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("ratio", "expected"), CELEBA_COSTS.items())
def test_celeba_networks_cost_what_the_rule_says(ratio: float, expected: tuple[float, float]) -> None:
    costs = region_costs(*CELEBA, ratio)
    assert (costs.params / 1e6, costs.macs / 1e9) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("ratios", "published_gmacs"),
    [
        ((0.3, 0.4, 0.7), 1.96),
        ((0.3, 0.4, 0.8), 1.57),
        ((0.3, 0.5, 0.7), 1.72),
        ((0.3, 0.5, 0.8), 1.33),
        ((0.3, 0.6, 0.8), 1.32),
        ((0.3, 0.4, 0.9), 1.47),  # the paper prints 1.57, the figure of another of its rows
        ((0.3, 0.6, 0.7), 1.715),  # not in the paper
    ],
)
def test_cifar10_ensembles_cost_what_the_paper_prints(ratios: tuple[float, ...], published_gmacs: float) -> None:
    macs = [region_costs(*CIFAR10, ratio).macs for ratio in ratios]
    weighted = sum(share * cost for share, cost in zip(ROUTES, macs, strict=True)) / sum(ROUTES)
    assert weighted / 1e9 == pytest.approx(published_gmacs, abs=0.005)


def test_the_celeba_ensemble_costs_what_the_paper_prints() -> None:
    costs = [region_costs(*CELEBA, ratio) for ratio in (0.3, 0.6, 0.8)]
    params = sum(share * cost.params for share, cost in zip(ROUTES, costs, strict=True)) / sum(ROUTES)
    macs = sum(share * cost.macs for share, cost in zip(ROUTES, costs, strict=True)) / sum(ROUTES)
    assert (params / 1e6, macs / 1e9) == pytest.approx((16.5, 5.2), rel=0.01)
