"""The paper's parameters and multiply-accumulates at every pruning ratio, within 1%, and the presets' own networks.

A process counts a network once: what has a preset's full size is all here.
"""

import pytest

from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.plans.preset_plans import presets
from ebdiff_orchestrator.plans.preview import preview_plan
from region_workers.networks.costs import Costs, cost_counter
from schemas.model import LatentModelPlan, ModelPlan, PixelModelPlan
from schemas.plan import DataPlan


def pixel_network(
    resolution: int, widths: tuple[int, ...], attention_level: int, dropout: float
) -> tuple[ModelPlan, DataPlan]:
    """DDPM's network, which attends at one level."""
    levels = range(len(widths))
    down = tuple("AttnDownBlock2D" if level == attention_level else "DownBlock2D" for level in levels)
    up = tuple("AttnUpBlock2D" if level == attention_level else "UpBlock2D" for level in reversed(levels))
    model = PixelModelPlan(
        block_out_channels=widths, down_block_types=down, up_block_types=up, norm_num_groups=32, dropout=dropout
    )
    return model, DataPlan(resolution=resolution, channels=3)


NETWORKS: dict[str, tuple[ModelPlan, DataPlan]] = {
    "cifar10": pixel_network(32, (128, 256, 256, 256), attention_level=1, dropout=0.1),
    "celeba": pixel_network(64, (128, 256, 256, 256, 512), attention_level=2, dropout=0.1),
    "lsun": pixel_network(256, (128, 128, 256, 256, 512, 512), attention_level=4, dropout=0.0),
    "imagenet": (
        LatentModelPlan(
            family="latent",
            vae="CompVis/ldm-celebahq-256",
            vae_subfolder="vqvae",
            scaling_factor=1.0,
            num_classes=1000,
        ),
        DataPlan(resolution=256, channels=3),
    ),
}
PRESETS = {
    "cifar10": "cifar10",
    "celeba64": "celeba",
    "lsun-church256": "lsun",
    "lsun-bedroom256": "lsun",
    "imagenet256-ldm": "imagenet",
}
# Millions of parameters, billions of multiply-accumulates (one image, torch-pruning's counter).
COSTS: dict[str, dict[float, tuple[float, float]]] = {
    "cifar10": {
        0.0: (35.75, 6.064),
        0.3: (19.85, 3.392),
        0.4: (14.32, 2.736),
        0.5: (8.97, 1.520),
        0.6: (8.59, 1.490),
        0.7: (5.12, 1.076),
        0.8: (2.16, 0.375),
        0.9: (0.66, 0.195),
    },
    "celeba": {
        0.0: (78.70, 23.922),
        0.3: (43.74, 13.321),
        0.5: (19.71, 5.997),
        0.6: (16.65, 5.760),
        0.8: (4.76, 1.459),
    },
    "lsun": {
        0.0: (113.67, 248.688),
        0.3: (63.21, 138.871),
        0.5: (28.46, 62.414),
        0.6: (22.80, 60.044),
        0.8: (6.88, 15.325),
    },
    "imagenet": {
        0.0: (400.92, 99.86),
        0.3: (203.22, 55.19),
        0.5: (103.06, 25.00),
        0.6: (69.57, 18.63),
        0.8: (19.18, 6.09),
    },
}
ROUTES = (240, 200, 560)  # timesteps of [0, 240), [240, 440), [440, 1000)


def weighted(network: str, ratios: tuple[float, ...]) -> tuple[float, float]:
    """Millions of parameters and billions of multiply-accumulates, averaged over the routes."""
    costs = [cost_counter(*NETWORKS[network]).at(ratio) for ratio in ratios]
    params = sum(share * cost.params for share, cost in zip(ROUTES, costs, strict=True)) / sum(ROUTES)
    macs = sum(share * cost.macs for share, cost in zip(ROUTES, costs, strict=True)) / sum(ROUTES)
    return params / 1e6, macs / 1e9


def in_millions_and_billions(costs: Costs) -> tuple[float, float]:
    return costs.params / 1e6, costs.macs / 1e9


@pytest.mark.parametrize(
    ("network", "ratio", "expected"), [(name, *entry) for name, entries in COSTS.items() for entry in entries.items()]
)
def test_networks_cost_what_the_rule_says(network: str, ratio: float, expected: tuple[float, float]) -> None:
    costs = cost_counter(*NETWORKS[network]).at(ratio)
    assert in_millions_and_billions(costs) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("network", "ratio", "published"),
    [
        ("cifar10", 0.0, (35.7, 6.1)),
        ("cifar10", 0.3, (19.8, 3.4)),
        ("cifar10", 0.5, (9.0, 1.5)),
        ("celeba", 0.0, (78.7, 23.9)),
        ("celeba", 0.5, (19.7, 6.0)),
        ("lsun", 0.0, (113.7, 248.7)),
        ("lsun", 0.5, (28.5, 62.4)),
        ("imagenet", 0.0, (400.9, 99.8)),
    ],
)
def test_networks_cost_what_the_paper_prints(network: str, ratio: float, published: tuple[float, float]) -> None:
    costs = in_millions_and_billions(cost_counter(*NETWORKS[network]).at(ratio))
    assert costs == pytest.approx(published, rel=0.015)  # printed to two digits


def test_the_paper_prints_a_smaller_latent_network_at_0_5_than_its_rule_gives() -> None:
    params, macs = in_millions_and_billions(cost_counter(*NETWORKS["imagenet"]).at(0.5))
    assert (params / 92.8, macs / 23.6) == pytest.approx((1.11, 1.06), abs=0.01)


@pytest.mark.parametrize(
    ("ratios", "published_gmacs"),
    [
        ((0.3, 0.4, 0.7), 1.96),
        ((0.3, 0.4, 0.8), 1.57),
        ((0.3, 0.5, 0.7), 1.72),
        ((0.3, 0.5, 0.8), 1.33),
        ((0.3, 0.6, 0.8), 1.32),
        ((0.3, 0.4, 0.9), 1.47),  # the paper prints 1.57, the figure of another of its rows
        ((0.3, 0.6, 0.7), 1.715),  # printed as 1.72
    ],
)
def test_cifar10_ensembles_cost_what_the_paper_prints(ratios: tuple[float, ...], published_gmacs: float) -> None:
    assert weighted("cifar10", ratios)[1] == pytest.approx(published_gmacs, abs=0.005)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("cifar10", (7.69, 1.322)),  # the paper prints 7.2 M
        ("celeba", (16.5, 5.2)),
        ("lsun", (23.6, 53.9)),
        ("imagenet", (73.4, 20.4)),  # the paper prints 67.0 M and 19.55 G
    ],
)
def test_ensembles_cost_the_average_over_the_timesteps_they_own(network: str, expected: tuple[float, float]) -> None:
    assert weighted(network, (0.3, 0.6, 0.8)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("preset", presets())
def test_every_preset_s_networks_are_counted_and_the_paper_s_are_these(preset: str) -> None:
    plan = load_plan(preset)
    assert len(preview_plan(plan).regions) == 3
    if preset in PRESETS:
        assert plan.model == NETWORKS[PRESETS[preset]][0]


def test_the_other_count_has_the_attentions_matrix_products() -> None:
    dense = cost_counter(*NETWORKS["cifar10"]).dense()
    assert dense.macs_with_attention / 1e9 == pytest.approx(6.222, abs=0.001)
