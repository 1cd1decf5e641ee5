"""When a mask has stopped changing: the FIFO queue of early-bird drawing (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from region_workers.pruning.mask import mask_distance
from schemas.plan import DrawPlan


def queue_distances(masks: Sequence[torch.Tensor], plan: DrawPlan) -> tuple[float, ...] | None:
    """Distance of the newest mask to each other mask in the queue, nearest in time first; None while it fills.

    `masks`: bool [bits], one an interval, oldest first; every `plan.queue_stride`-th stands in the queue.
    """
    queue = list(masks[:: -plan.queue_stride][: plan.queue_length])
    if len(queue) < plan.queue_length:
        return None
    return tuple(mask_distance(queue[0], older) for older in queue[1:])


def has_converged(distances: tuple[float, ...] | None, plan: DrawPlan) -> bool:
    """Whether the queue is full and the newest mask lies within the threshold of each of the others."""
    return distances is not None and max(distances) <= plan.threshold
