"""The masks that a trained dense model has, beside those of a run. torch is imported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ebdiff_orchestrator.reports.masks import NamedMask, pack
from region_workers.networks.dense import loading_arguments
from region_workers.networks.pretrained import dense_counter, find_dense
from region_workers.pruning.importance import channel_scores, sequential_masks
from region_workers.pruning.mask import compute_mask, pack_mask
from schemas.errors import PlanError, UserError
from schemas.manifest import DenseSource
from schemas.plan import Plan


def dense_masks(plan: Plan, start: DenseSource | None, source: Path, ratios: Sequence[float]) -> list[NamedMask]:
    """The masks, one a ratio, of the network in `source` under the channel groups of the run's dense network.

    `start`: the dense start that the run recorded: the plan has no fields for all of its arguments.

    `source`: a dense run's directory or a diffusers folder, with or without unet/. UserError if it is neither, or
    holds a network of another shape.
    """
    weights = _load_weights(source, loading_arguments(plan.model, plan.data))
    counter = dense_counter(plan.model, plan.data, start)
    for name, parameter in counter.network_at(0.0).named_parameters():
        if name not in weights or weights[name].shape != parameter.shape:
            found = list(weights[name].shape) if name in weights else "missing"
            raise UserError(
                f"--dense {source}: {name} is {found}; expected {list(parameter.shape)}, as in the run's own dense "
                "network. Give a dense model of the same architecture."
            )
    groups = counter.groups
    if plan.draw.scoring == "sequential":
        mask_at = sequential_masks(groups, weights, "magnitude")
        return [_named(mask_at(ratio), ratio) for ratio in ratios]
    scores = channel_scores(groups, weights, "magnitude")
    return [_named(compute_mask(groups, scores, ratio), ratio) for ratio in ratios]


def _load_weights(source: Path, arguments: dict[str, Any]) -> dict[str, Tensor]:
    try:
        network = find_dense(str(source)).load(**arguments)
    except PlanError as error:
        raise UserError(str(error).replace("model.pretrained =", "--dense")) from None
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def _named(mask: Tensor, ratio: float) -> NamedMask:
    packed = pack([pack_mask(mask)])
    return NamedMask(f"the dense model at {ratio:.0%}", mask.numel(), packed[0])
