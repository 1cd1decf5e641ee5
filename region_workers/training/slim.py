"""The stage in place of a draw where nothing is drawn: narrow networks with fresh weights, the control of tickets."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from region_workers.pruning.groups import find_groups
from region_workers.pruning.mask import compute_mask, kept_channels
from region_workers.pruning.widths import realised_ratio
from region_workers.storage.tables import write_masks
from region_workers.training.device import World
from region_workers.training.family import ModelFamily
from region_workers.training.randomness import StepRandomness
from region_workers.training.stage_loop import Stage
from region_workers.training.tickets import Tickets, fresh_expert
from schemas.job import MASKS_FILE, DrawStage, Ticket, WorkerJob


class Slim(Stage):
    """A region's expert has the widths of its pruning ratio, the first channels of each norm group, and fresh weights.

    The dense network's shapes are traced without its weights, which are never made. No step is taken.
    """

    def __init__(
        self, job: WorkerJob, plan: DrawStage, family: ModelFamily, randomness: StepRandomness, world: World
    ) -> None:
        (target,) = plan.targets
        with torch.device("meta"):
            dense = family.build_dense()
        groups = find_groups(dense, family.example_inputs(dense))
        mask = compute_mask(groups, [torch.zeros(group.size) for group in groups], target.pruning_ratio)
        self._ticket = Ticket(
            region=target.region,
            pruning_ratio=target.pruning_ratio,
            realised_ratio=realised_ratio(groups, target.pruning_ratio),
            importance="none",
            weights="fresh",
            interval=0,
            step=0,
            distances=(),
            converged=True,
            kept_channels=kept_channels(groups, mask),
        )
        kept = self._ticket.kept_channels
        self._expert = fresh_expert(dense, kept, job.seed, plan.timesteps, target.pruning_ratio)
        super().__init__(job, plan, copy.deepcopy(self._expert), family, randomness, world, 0, keep_ema=False)

    def is_done(self) -> bool:
        return True

    def write_products(self) -> list[Path]:
        tickets = Tickets(self.folder)
        tickets.write(self._ticket, self._expert)
        write_masks(self.folder / MASKS_FILE, [])
        return [self.folder / MASKS_FILE, *tickets.files()]

    def figures(self) -> dict[str, float]:
        return {f"{self._ticket.region}.drawn_at_step": 0.0}
