"""What one mask of a paper's UNet costs, beside building a dependency graph and pruning a copy for each mask.

    python tests/benchmarks/mask_time.py [--network cifar10|lsun|imagenet] [--threads 2] [--rounds 3] [--masks 5]
                                         [--device cuda] [--short] [--json FILE]

A mask is the scores of all channels and the bits kept of them, as a draw takes it at every interval; for Taylor and
diff-pruning with the gradients at hand, since their passes are training and not pruning. Instead, as research code
does it: a copy of the network, its graph traced, and the channels cut out of it by the library's own pruner.
"""

import argparse
import copy
import statistics
from collections.abc import Mapping

import torch
import torch_pruning
from bench import SMALL, Report, arguments, benchmark, median_s, parsed, ratio
from torch import Tensor, nn

from ebdiff_orchestrator.plans.load import load_plan
from region_workers.networks.dense import build_dense
from region_workers.networks.supported import network_inputs
from region_workers.pruning.groups import find_groups
from region_workers.pruning.importance import Importance, channel_scores, sequential_masks
from region_workers.pruning.mask import compute_mask, kept_channels, prunable_bits

NETWORKS = {"cifar10": "cifar10", "lsun": "lsun-church256", "imagenet": "imagenet256-ldm"}  # presets
IMPORTANCES: tuple[Importance, ...] = ("magnitude", "taylor", "diff-pruning")
MOST_S = {"cifar10": 0.1, "lsun": 1.0, "imagenet": 1.0}
RATIO = 0.6


def main() -> None:
    parser = arguments(__doc__, rounds=3, masks=5, device="cpu")  # a round: for each importance, so many masks
    parser.add_argument("--network", choices=NETWORKS, default="cifar10")
    options = parsed(parser, threads=1, rounds=1)
    plan = load_plan("digits", [SMALL]) if options.short else load_plan(NETWORKS[options.network])
    torch.manual_seed(0)
    network = build_dense(plan.model, plan.data).to(options.device)
    with benchmark("a mask", options, ratio=RATIO) as (report, _):
        measure(report, network, network_inputs(network, network.device), options)


def measure(report: Report, network: nn.Module, inputs: dict[str, Tensor], options: argparse.Namespace) -> None:
    """Masks of every importance, each beside its graph and copy in every round."""
    groups = find_groups(network, inputs)
    parameters = dict(network.named_parameters())
    gradients = {name: 1e-3 * torch.randn_like(parameter) for name, parameter in parameters.items()}

    def mask(importance: Importance) -> Tensor:
        return compute_mask(groups, channel_scores(groups, parameters, importance, gradients), RATIO)

    def in_sequence(importance: Importance) -> Tensor:
        return sequential_masks(groups, parameters, importance, gradients)(RATIO)

    report.add("parameters", sum(parameter.numel() for parameter in parameters.values()) / 1e6, "M")
    report.add("bits of a mask", prunable_bits(groups))
    for importance in IMPORTANCES:
        given = None if importance == "magnitude" else gradients
        masks: list[float] = []
        copies: list[float] = []
        for _ in range(options.rounds):
            masks.append(median_s(lambda importance=importance: mask(importance), options.masks))
            copies.append(median_s(lambda given=given: prune_a_copy(network, inputs, given), 1, warm_up=0))
        sequence_s = median_s(lambda importance=importance: in_sequence(importance), options.masks)
        report.add(f"{importance}: a mask", statistics.median(masks), "s", at_most=MOST_S[options.network])
        report.add(f"{importance}: a mask in sequence", sequence_s, "s", at_most=MOST_S[options.network])
        report.add(f"{importance}: graph and pruned copy instead", statistics.median(copies), "s")
        report.add(f"{importance}: instead over a mask", ratio(copies, masks), "x", at_least=20)
    bits = mask("magnitude")
    report.add("kept channels of a ticket", median_s(lambda: kept_channels(groups, bits), options.masks), "s")
    report.add("groups, once a draw", median_s(lambda: find_groups(network, inputs), options.rounds), "s")


def prune_a_copy(network: nn.Module, inputs: dict[str, Tensor], gradients: Mapping[str, Tensor] | None) -> None:
    """A mask by the library's own pruner: a copy of the network, its graph, and the channels cut out of it."""
    copied = copy.deepcopy(network)
    for name, parameter in copied.named_parameters():
        parameter.grad = None if gradients is None else gradients[name]
    importance = torch_pruning.importance
    scores = (
        importance.GroupMagnitudeImportance(p=2, normalizer=None)
        if gradients is None
        else importance.GroupTaylorImportance(normalizer=None)
    )
    pruner = torch_pruning.pruner.BasePruner(
        copied,
        inputs,
        importance=scores,
        pruning_ratio=RATIO,
        ignored_layers=[copied.conv_out],
        channel_groups={},
        customized_pruners={},
        unwrapped_parameters=[],
    )
    pruner.step()


if __name__ == "__main__":
    main()
