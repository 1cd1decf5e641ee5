"""Costs: counted on no weights, for one image, and in silence."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from pruning_networks import DATA, LATENT_DATA, LATENT_MODEL, MODEL, groups_of, random_latent_unet, random_unet

import region_workers.networks.costs
from region_workers.networks.costs import CostCounter, cost_counter, count_costs
from region_workers.networks.drawing_gru import DrawingGRU
from region_workers.networks.pruned_unet import extract_expert
from region_workers.networks.supported import network_inputs
from region_workers.pruning.groups import ChannelGroup, find_groups
from region_workers.pruning.importance import channel_scores
from region_workers.pruning.mask import compute_mask, kept_channels
from schemas.data import DrawingsPlan
from schemas.experiment import SparsityPlan
from schemas.model import VectorModelPlan
from schemas.plan import DataPlan


def test_a_convolutions_costs_are_those_of_the_textbook() -> None:
    costs = count_costs(torch.nn.Conv2d(3, 8, 3, padding=1), {"input": torch.zeros(1, 3, 4, 4)})
    assert costs.params == 3 * 8 * 9 + 8
    assert costs.macs == (3 * 8 * 9 + 8) * 16
    assert costs.macs_with_attention == 3 * 8 * 9 * 16


def test_one_count_leaves_the_attentions_matrix_products_out_and_the_other_does_not() -> None:
    attention = Attention(query_dim=8, heads=2, dim_head=4, bias=False)
    costs = count_costs(attention, {"hidden_states": torch.zeros(1, 10, 8)})
    linear = 4 * 8 * 8 * 10
    assert costs.macs == linear + 8  # the last one has a bias
    assert costs.macs_with_attention == linear + 2 * 10 * 10 * 8  # queries by keys, and weights by values


def test_the_costs_of_a_region_are_those_of_its_expert_whichever_channels_stay() -> None:
    dense = random_unet()
    groups = groups_of(dense)
    for seed in (0, 1):
        scores = channel_scores(groups, {}, "random", generator=torch.Generator().manual_seed(seed))
        expert = extract_expert(dense, kept_channels(groups, compute_mask(groups, scores, 0.6)))
        assert count_costs(expert, network_inputs(expert, "cpu")) == cost_counter(MODEL, DATA).at(0.6)
        assert sum(parameter.numel() for parameter in expert.parameters()) == cost_counter(MODEL, DATA).at(0.6).params


def test_the_table_of_class_vectors_is_no_part_of_the_unet() -> None:
    network = random_latent_unet()
    everything = sum(parameter.numel() for parameter in network.parameters())
    assert cost_counter(LATENT_MODEL, LATENT_DATA).dense().params == everything - 11 * 24


def test_a_network_of_drawings_costs_each_weight_once_a_point() -> None:
    counter = cost_counter(VectorModelPlan(family="vector"), DataPlan(drawings=DrawingsPlan()))
    costs, half = counter.dense(), counter.at(0.5)
    assert (costs.params, costs.macs, costs.macs_with_attention) == (416_859, 41_330_400, 41_330_400)
    narrow = sum(parameter.numel() for parameter in DrawingGRU(frequencies=[1.0] * 4, hidden_size=48).parameters())
    assert half.params == narrow
    sparse = counter.sparse_at(0.0, SparsityPlan(method="static", sparsity=0.5, distribution="uniform"))
    assert (sparse.maskable, sparse.kept, sparse.forward_macs) == (413_304, 413_304 // 2, 41_330_400 // 2)
    assert sparse.kept_params == 413_304 // 2 + 3_555


def test_a_counter_finds_the_groups_once_for_all_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def counted(*arguments: Any) -> tuple[ChannelGroup, ...]:
        found.append(1)
        return find_groups(*arguments)

    monkeypatch.setattr(region_workers.networks.costs, "find_groups", counted)
    network = random_latent_unet()
    counter = CostCounter(network, network_inputs(network))
    costs = [counter.at(ratio) for ratio in (0.0, 0.3, 0.6)]
    assert found == [1]
    assert costs[0] == counter.dense() == cost_counter(LATENT_MODEL, LATENT_DATA).dense()
    assert costs[2] == cost_counter(LATENT_MODEL, LATENT_DATA).at(0.6)
    assert costs[0].params > costs[1].params > costs[2].params


def test_counting_says_nothing_and_counts_one_image(capsys: pytest.CaptureFixture[str]) -> None:
    one = cost_counter(MODEL, DATA).dense()
    batch = {"sample": torch.zeros(4, 3, 8, 8), "timestep": torch.ones(4, dtype=torch.long)}
    four = count_costs(random_unet(), batch)
    assert four.macs == pytest.approx(one.macs, rel=0.01)
    assert four.macs_with_attention == pytest.approx(one.macs_with_attention, rel=0.01)
    assert capsys.readouterr() == ("", "")
