"""Scores, against torch-pruning's own importances."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch_pruning
from pruning_networks import groups_of, noisy_images, positions, random_unet
from torch import Tensor

from region_workers.networks.supported import network_inputs
from region_workers.pruning.importance import Importance, channel_scores, sequential_masks
from region_workers.pruning.mask import compute_mask


def scores_of_torch_pruning(network: torch.nn.Module, importance: torch_pruning.importance.Importance) -> dict:
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=network_inputs(network, "cpu"))
    names = {module: name for name, module in network.named_modules()}
    scores: dict[str, Tensor] = {}
    for group in graph.get_all_groups(ignored_layers=[network.conv_out]):
        score = importance(group)
        for item in group.items:
            if graph.is_out_channel_pruning_fn(item.dep.handler) and item.dep.target.module in names:
                scores[names[item.dep.target.module]] = score
    return scores


_MAGNITUDE = torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer=None)
_TAYLOR = torch_pruning.importance.GroupTaylorImportance(group_reduction="mean", normalizer=None)


@pytest.mark.parametrize(
    ("importance", "theirs"), [("magnitude", _MAGNITUDE), ("taylor", _TAYLOR), ("diff-pruning", _TAYLOR)]
)
def test_scores_are_those_of_torch_prunings_group_importance(
    importance: Importance, theirs: torch_pruning.importance.Importance
) -> None:
    network, gradients = _with_gradients()
    groups, expected = groups_of(network), scores_of_torch_pruning(network, theirs)
    scores = channel_scores(groups, parameters_of(network), importance, gradients, rule="torch-pruning")
    for group, score in zip(groups, scores, strict=True):
        torch.testing.assert_close(score, expected[group.root])


def test_by_the_released_rule_squares_are_summed_and_norms_count() -> None:
    network, gradients = _with_gradients()
    groups, parameters = groups_of(network), parameters_of(network)
    products = {name: parameter * gradients[name] for name, parameter in parameters.items()}
    for group, score in zip(groups, channel_scores(groups, parameters, "taylor", gradients), strict=True):
        expected = torch.zeros(group.size)
        for member in group.members:
            product = products[f"{member.layer}.weight"]
            if member.kind == "norm":
                expected += product.abs()[member.indices]
            else:
                side = product if member.kind == "out" else product.transpose(0, 1)
                expected += side.flatten(1).square().sum(1)[member.indices]
        layers = len({(member.layer, member.kind) for member in group.members if member.kind != "norm"})
        torch.testing.assert_close(score, expected / layers)


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_in_sequence_each_group_is_scored_on_what_those_before_it_have_left(
    importance: Importance, ratio: float
) -> None:
    network, gradients = _with_gradients()
    groups = groups_of(network)
    parameters = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    expected = {}
    for group in sorted(groups, key=lambda group: group.order):
        times = Counter((member.layer, member.kind) for member in group.members)
        once = [member for member in group.members if times[member.layer, member.kind] == 1]
        score = channel_scores([replace(group, members=tuple(once))], parameters, importance, gradients)[0]
        bits = expected[group.root] = compute_mask([group], [score], ratio)
        for member in group.members:  # what is dropped no longer counts anywhere
            weight = parameters[f"{member.layer}.weight"]
            side = weight if member.kind != "in" else weight.transpose(0, 1)
            side[positions(member)[~bits]] = 0
    mask = sequential_masks(groups, parameters_of(network), importance, gradients)(ratio)
    assert torch.equal(mask, torch.cat([expected[group.root] for group in groups]))
    at_once = compute_mask(groups, channel_scores(groups, parameters_of(network), importance, gradients), ratio)
    assert not torch.equal(mask, at_once)
    assert mask.sum() == at_once.sum()
    assert any(
        len({m.layer for m in g.members if m.kind == "in"}) < sum(m.kind == "in" for m in g.members) for g in groups
    )


def parameters_of(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def _with_gradients() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    network = random_unet()
    network(noisy_images(), 5).sample.square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return network, gradients


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
    full = parameters_of(network)
    half = {name: tensor.bfloat16() for name, tensor in full.items()}
    kept = {name: tensor.clone() for name, tensor in half.items()}
    for score, expected in zip(
        channel_scores(groups, half, "magnitude"), channel_scores(groups, full, "magnitude"), strict=True
    ):
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, expected, rtol=0.02, atol=0)
    assert all(torch.equal(half[name], kept[name]) for name in half)
