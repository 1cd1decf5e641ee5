"""Scores, against torch-pruning's own importances."""

from __future__ import annotations

import pytest
import torch
import torch_pruning
from pruning_networks import DATA, MODEL, groups_of, noisy_images, random_unet
from torch import Tensor

from region_workers.dense import example_inputs
from region_workers.pruning.importance import channel_scores


def scores_of_torch_pruning(network: torch.nn.Module, importance: torch_pruning.importance.Importance) -> dict:
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=example_inputs(MODEL, DATA, "cpu"))
    names = {module: name for name, module in network.named_modules()}
    scores: dict[str, Tensor] = {}
    for group in graph.get_all_groups(ignored_layers=[network.conv_out]):
        score = importance(group)
        for item in group.items:
            if graph.is_out_channel_pruning_fn(item.dep.handler) and item.dep.target.module in names:
                scores[names[item.dep.target.module]] = score
    return scores


def test_magnitude_is_torch_prunings_group_magnitude() -> None:
    network = random_unet()
    groups = groups_of(network)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer=None)
    expected = scores_of_torch_pruning(network, importance)
    scores = channel_scores(groups, dict(network.named_parameters()), "magnitude")
    for group, score in zip(groups, scores, strict=True):
        torch.testing.assert_close(score, expected[group.root])


@pytest.mark.parametrize("importance", ["taylor", "diff-pruning"])
def test_taylor_is_torch_prunings_group_taylor_on_the_gradients(importance: str) -> None:
    network = random_unet()
    groups = groups_of(network)
    network(noisy_images(), 5).sample.square().sum().backward()
    oracle = torch_pruning.importance.GroupTaylorImportance(group_reduction="mean", normalizer=None)
    parameters = dict(network.named_parameters())
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    scores = channel_scores(groups, parameters, importance, gradients)  # type: ignore[arg-type]
    expected = scores_of_torch_pruning(network, oracle)
    for group, score in zip(groups, scores, strict=True):
        torch.testing.assert_close(score, expected[group.root])


def test_random_scores_are_a_function_of_the_generator() -> None:
    groups = groups_of(random_unet())
    draws = [
        torch.cat(channel_scores(groups, {}, "random", generator=torch.Generator().manual_seed(seed)))
        for seed in (7, 7, 8)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].unique().numel() > 0.99 * draws[0].numel()


def test_what_an_importance_needs_is_asked_for() -> None:
    network = random_unet()
    with pytest.raises(ValueError, match="gradients"):
        channel_scores(groups_of(network), dict(network.named_parameters()), "taylor")
    with pytest.raises(ValueError, match="generator"):
        channel_scores(groups_of(network), {}, "random")


def test_scores_come_in_float32_from_half_precision_weights_and_leave_them_alone() -> None:
    network = random_unet()
    groups = groups_of(network)
    full = {name: parameter.detach() for name, parameter in network.named_parameters()}
    half = {name: tensor.bfloat16() for name, tensor in full.items()}
    kept = {name: tensor.clone() for name, tensor in half.items()}
    for score, expected in zip(
        channel_scores(groups, half, "magnitude"), channel_scores(groups, full, "magnitude"), strict=True
    ):
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, expected, rtol=0.02, atol=0)
    assert all(torch.equal(half[name], kept[name]) for name in half)
