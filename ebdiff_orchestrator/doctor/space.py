"""Free space: what a run will have on disk at its fullest, against what there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ebdiff_orchestrator.doctor.finding import Finding, note, wrong_or_fine
from ebdiff_orchestrator.doctor.nodes import Node, answering
from ebdiff_orchestrator.plans.preview import Outlook
from schemas.model import LatentModelPlan
from schemas.plan import Plan

_CHECK = "free space"
_FLOAT_BYTES, _LATENT_BYTES = 4, 2
_SLACK = 1.1  # metrics, masks, file systems' own needs
FIXED_BYTES = 16 << 20
_MAKE_ROOM = "Make room, or lower checkpointing.keep."


@dataclass(frozen=True)
class RunSize:
    """Bytes: of the run directory at its fullest, and of the store of samples; None where their number is not known."""

    run_bytes: int
    store_bytes: int | None


def run_size(outlook: Outlook, images: int | None) -> RunSize:
    """At its fullest every region keeps its checkpoints, one more being written, its ticket, its expert and a copy.

    A checkpoint holds weights and Adam's moments, and the EMA where there is one (in a draw: where it is ranked).
    """
    plan = outlook.plan
    kept = plan.checkpointing.keep + 1
    has_ema = plan.training.ema_decay is not None
    draws = plan.draw.method == "early-bird" and any(region.pruning_ratio for region in plan.regions)
    dense_state = outlook.dense.params * (3 + (has_ema and plan.draw.weights == "ema")) * draws
    numbers = 0
    for region in outlook.regions:
        train_state = region.costs.params * (3 + has_ema)
        drawn = dense_state if plan.draw.scope == "per-region" else 0
        numbers += kept * max(drawn, train_state) + 4 * region.costs.params
    if plan.draw.scope == "shared":
        numbers += kept * dense_state
    pixels = plan.sampling.num_images * plan.data.resolution**2 * plan.data.channels
    run_bytes = int(_SLACK * (numbers * _FLOAT_BYTES + 2 * pixels)) + FIXED_BYTES
    return RunSize(run_bytes, None if images is None else store_bytes(plan, images))


def store_bytes(plan: Plan, images: int) -> int:
    """Decoded images, a byte a value, and their latents in float16, mirrored ones beside them."""
    size = images * plan.data.resolution**2 * plan.data.channels
    if isinstance(plan.model, LatentModelPlan):
        side = plan.data.resolution // plan.model.latent_downscale
        copies = 2 if plan.data.random_flip else 1
        size += images * copies * plan.model.latent_channels * side**2 * _LATENT_BYTES
    return size


def check_run_space(needed: RunSize, free_bytes: int, there_bytes: int, folder: str) -> Finding:
    """Whether the run fits; `there_bytes`: what its directory holds already."""
    left = max(0, needed.run_bytes - there_bytes)
    lacking = [f"the run will write about {_gb(left)} and {folder} has {_gb(free_bytes)}"] if left > free_bytes else []
    return wrong_or_fine(
        _CHECK, lacking, _MAKE_ROOM, f"the run will write about {_gb(left)}; {_gb(free_bytes)} are free"
    )


def check_store_space(needed: RunSize, nodes: Sequence[Node]) -> Finding:
    """Whether the decoded images fit in each node's cache; one that is there already counts as room."""
    if needed.store_bytes is None:
        return note(_CHECK, "the number of images is not known before they are read, nor the size of their store")
    lacking = [
        f"{node.name}: {facts.cache_dir} has {_gb(facts.cache_free_bytes)}"
        for node, facts in answering(nodes)
        if needed.store_bytes > facts.cache_free_bytes + facts.cache_used_bytes
    ]
    wanted = f"the image store takes {_gb(needed.store_bytes)}"
    remedy = "Make room, or set workers.cache_dir or EBDIFF_CACHE to another disk."
    return wrong_or_fine(_CHECK, [f"{wanted}, but {'; '.join(lacking)}"] if lacking else [], remedy, wanted)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
