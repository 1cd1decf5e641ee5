"""What one mask of a paper's UNet costs, beside tracing and pruning a copy of the network for each mask.

python tests/benchmarks/mask_time.py [--network cifar10|lsun|imagenet] [--threads 2] [--repeats 20] [--device cuda]
                                     [--json]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch_pruning
from torch import Tensor, nn

from region_workers.dense import build_dense, example_inputs
from region_workers.pruning.groups import find_groups
from region_workers.pruning.importance import channel_scores
from region_workers.pruning.mask import compute_mask, kept_channels
from schemas.model import LatentModelPlan, ModelPlan, PixelModelPlan
from schemas.plan import DataPlan

NETWORKS: dict[str, tuple[ModelPlan, DataPlan]] = {
    "cifar10": (
        PixelModelPlan(
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=32,
            dropout=0.1,
        ),
        DataPlan(resolution=32, channels=3),
    ),
    "lsun": (
        PixelModelPlan(
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=(*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
            norm_num_groups=32,
        ),
        DataPlan(resolution=256, channels=3),
    ),
    "imagenet": (
        LatentModelPlan(family="latent", vae="vq-f4", num_classes=1000),
        DataPlan(resolution=256, channels=3),
    ),
}
RATIO = 0.6


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    model, data = NETWORKS[arguments.network]
    network = build_dense(model, data).to(arguments.device)
    inputs = example_inputs(model, data, network.device)
    report = measure(network, inputs, arguments.repeats, arguments.graph_repeats)
    if arguments.json:
        setting = {
            "network": arguments.network,
            "threads": arguments.threads,
            "device": arguments.device,
            "torch": torch.__version__,
        }
        print(json.dumps({**report, **setting}, indent=2))
        return
    print(f"{arguments.network} UNet, ratio {RATIO}, {arguments.threads} threads, {arguments.device}; medians")
    print(f"mask (scores and bits)        {report['mask_s'] * 1e3:9.1f} ms")
    print(f"kept channels of a ticket     {report['kept_channels_s'] * 1e3:9.1f} ms")
    print(f"groups, once a draw           {report['groups_s'] * 1e3:9.1f} ms")
    instead_s = report["graph_and_copy_s"]
    print(f"graph and pruned copy instead {instead_s * 1e3:9.1f} ms  ({report['ratio']:.0f} times a mask)")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="cifar10")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20, help="masks timed")
    parser.add_argument("--graph-repeats", type=int, default=3, help="graphs and pruned copies timed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def measure(network: nn.Module, inputs: dict[str, Tensor], repeats: int, graph_repeats: int) -> dict[str, float]:
    groups = find_groups(network, inputs)
    parameters = dict(network.named_parameters())

    def mask() -> torch.Tensor:
        return compute_mask(groups, channel_scores(groups, parameters, "magnitude"), RATIO)

    bits = mask()
    mask_s = median_s(mask, repeats)
    graph_and_copy_s = median_s(lambda: prune_a_copy(network, inputs), graph_repeats)
    return {
        "mask_s": mask_s,
        "kept_channels_s": median_s(lambda: kept_channels(groups, bits), repeats),
        "groups_s": median_s(lambda: find_groups(network, inputs), graph_repeats),
        "graph_and_copy_s": graph_and_copy_s,
        "ratio": graph_and_copy_s / mask_s,
    }


def prune_a_copy(network: nn.Module, inputs: dict[str, Tensor]) -> None:
    """A mask by the library's own pruner: a copy of the network, its graph, and the channels cut out of it."""
    copied = copy.deepcopy(network)
    pruner = torch_pruning.pruner.MagnitudePruner(
        copied,
        inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer=None),
        pruning_ratio=RATIO,
        ignored_layers=[copied.conv_out],
        channel_groups={},
        customized_pruners={},
        unwrapped_parameters=[],
    )
    pruner.step()


def median_s(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
