"""Costs: counted on no weights, for one image, and in silence."""

from __future__ import annotations

import pytest
import torch
from pruning_networks import DATA, MODEL, groups_of, random_unet

from region_workers.costs import count_costs, dense_costs, region_costs
from region_workers.dense import example_inputs
from region_workers.pruned_unet import extract_expert
from region_workers.pruning.importance import channel_scores
from region_workers.pruning.mask import compute_mask, kept_channels


def test_a_convolutions_costs_are_those_of_the_textbook() -> None:
    costs = count_costs(torch.nn.Conv2d(3, 8, 3, padding=1), {"input": torch.zeros(1, 3, 4, 4)})
    assert costs.params == 3 * 8 * 9 + 8
    assert costs.macs == (3 * 8 * 9 + 8) * 16


def test_the_costs_of_a_region_are_those_of_its_expert_whichever_channels_stay() -> None:
    dense = random_unet()
    groups = groups_of(dense)
    for seed in (0, 1):
        scores = channel_scores(groups, {}, "random", generator=torch.Generator().manual_seed(seed))
        expert = extract_expert(dense, kept_channels(groups, compute_mask(groups, scores, 0.6)))
        assert count_costs(expert, example_inputs(MODEL, DATA, "cpu")) == region_costs(MODEL, DATA, 0.6)
        assert sum(parameter.numel() for parameter in expert.parameters()) == region_costs(MODEL, DATA, 0.6).params


def test_a_ratio_of_0_costs_what_the_dense_network_does() -> None:
    assert region_costs(MODEL, DATA, 0.0) == dense_costs(MODEL, DATA)


def test_counting_says_nothing_and_counts_one_image(capsys: pytest.CaptureFixture[str]) -> None:
    one = dense_costs(MODEL, DATA)
    batch = {"sample": torch.zeros(4, 3, 8, 8), "timestep": torch.ones(4, dtype=torch.long)}
    assert count_costs(random_unet(), batch).macs == pytest.approx(one.macs, rel=0.01)
    assert capsys.readouterr() == ("", "")
