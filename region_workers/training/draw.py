"""The draw stage: train the dense model on a range of timesteps until every target's ticket has appeared.

`Slim` stands in its place where nothing is drawn.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from region_workers.networks.pruned_unet import PrunedNetwork, extract_expert
from region_workers.networks.supported import network_inputs
from region_workers.pruning.groups import find_groups
from region_workers.pruning.mask import (
    kept_at,
    kept_channels,
    pack_mask,
    prunable_bits,
    queue_distances,
    realised_ratio,
    unpack_mask,
)
from region_workers.storage.durable import write_folder, write_model
from region_workers.storage.integrity import file_digest, files_in, read_verified, seal_folder
from region_workers.storage.tables import Row, read_masks, write_masks
from region_workers.training.checkpoints import Checkpoint
from region_workers.training.device import World
from region_workers.training.failures import TicketNotDrawnError
from region_workers.training.family import ModelFamily
from region_workers.training.masks import mask_maker
from region_workers.training.randomness import StepRandomness
from region_workers.training.stage_loop import Stage, stopped_at
from schemas.digest import seed_from
from schemas.job import (
    EXPERT_FOLDER,
    MASKS_FILE,
    TICKET_FILE,
    TICKETS_FOLDER,
    DrawStage,
    DrawTarget,
    KeptChannels,
    Ticket,
    WorkerJob,
)


class Draw(Stage):
    """A mask of each target every interval; a target whose queue of masks agrees gets its ticket.

    TicketNotDrawnError after `draw.max_intervals` masks, unless the plan says to take the last one.
    """

    def __init__(
        self, job: WorkerJob, plan: DrawStage, family: ModelFamily, randomness: StepRandomness, world: World
    ) -> None:
        self._plan, self._targets = job.draw_plan, plan.targets
        self._interval = self._plan.interval_steps or family.steps_per_epoch
        dense = family.build_dense()
        self._groups = find_groups(dense, network_inputs(dense))
        most_steps, keep_ema = self._interval * self._plan.max_intervals, self._plan.weights == "ema"
        super().__init__(job, plan, dense, family, randomness, world, most_steps, keep_ema)
        self._masks: dict[str, list[torch.Tensor]] = {target.region: [] for target in plan.targets}
        self._mask_rows: list[Row] = []
        self._tickets = Tickets(self.folder)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Masks and tickets follow from the checkpoint; tickets drawn after it are drawn again."""
        self._mask_rows = read_masks(checkpoint.files[MASKS_FILE])
        for row in self._mask_rows:
            self._masks[str(row["region"])].append(unpack_mask(row["mask"], row["bits"]))
        self._tickets.restore(checkpoint.info.beside, (target.region for target in self._targets))

    def begin(self) -> None:
        for target in self._waiting():
            if target.pruning_ratio == 0:  # it needs no mask: its expert is the dense network as it was built
                everything = torch.ones(prunable_bits(self._groups), dtype=torch.bool)
                self._draw_ticket(target, everything, (), interval=0, converged=True)
        if self._plan.method == "one-shot":  # a network that is trained already: one mask each, before any step
            waiting = self._waiting()
            for target, mask in self._compute_masks(interval=0):
                if target in waiting:
                    self._draw_ticket(target, mask, (), interval=0, converged=True)
        self.after_step()  # a stop may have left masks out

    def is_done(self) -> bool:
        return not self._waiting()

    def after_step(self) -> None:
        """Compute the masks of an interval that ends here, unless they are there, and draw the tickets that are due."""
        step = self.trainer.step
        if step and step % self._interval == 0 and not (self._mask_rows and self._mask_rows[-1]["step"] == step):
            self._end_interval(step // self._interval)
        if self._waiting() and step >= self._interval * self._plan.max_intervals:
            raise self._not_drawn()

    def checkpoint_files(self) -> Mapping[str, str]:
        return self._tickets.digests

    def checkpoint_writer(self) -> Callable[[Path], None]:
        rows = list(self._mask_rows)
        return lambda folder: write_masks(folder / MASKS_FILE, rows)

    def write_products(self) -> list[Path]:
        write_masks(self.folder / MASKS_FILE, self._mask_rows)
        return [self.folder / MASKS_FILE, *self._tickets.files()]

    def figures(self) -> dict[str, float]:
        return {f"{region}.drawn_at_step": float(ticket.step) for region, ticket in self._tickets.drawn.items()}

    def _waiting(self) -> list[DrawTarget]:
        return [target for target in self._targets if target.region not in self._tickets.drawn]

    def _end_interval(self, interval: int) -> None:
        self.trainer.check_finite()
        waiting = self._waiting()
        for target, mask in self._compute_masks(interval):
            self._masks[target.region].append(mask)
            if target not in waiting:
                continue
            distances = queue_distances(self._masks[target.region], self._plan)
            converged = self._plan.masks_agree(distances)
            late = self._plan.on_timeout == "take_last" and interval == self._plan.max_intervals
            if converged or late:
                self._draw_ticket(target, mask, distances or (), interval, converged)
        largest = self._largest_distances()
        self.reporter.note(self._describe(largest), largest, self._plan.threshold)

    def _compute_masks(self, interval: int) -> list[tuple[DrawTarget, torch.Tensor]]:
        """One mask for each target that is pruned, rank zero's, also noted for the stage's file."""
        step = self.trainer.step
        pruned = [target for target in self._targets if target.pruning_ratio > 0]
        mask_at = mask_maker(self._groups, self.trainer, self._plan, self._between_passes)
        masks = [(target, self.world.broadcast(mask_at(target.pruning_ratio)).cpu()) for target in pruned]
        for target, mask in masks:
            packed, bits = pack_mask(mask), mask.numel()
            row: Row = {"region": target.region, "interval": interval, "step": step, "bits": bits, "mask": packed}
            self._mask_rows.append(row)
        return masks

    def _between_passes(self) -> None:
        """Between two passes of a long mask: say that the worker is alive, and stop if asked to."""
        beat = self.reporter.heartbeat(self.trainer.step)
        if beat and self.world.size == 1 and self.reporter.stop_requested():
            raise stopped_at(self.trainer.step)

    def _draw_ticket(
        self, target: DrawTarget, mask: torch.Tensor, distances: tuple[float, ...], interval: int, converged: bool
    ) -> None:
        """The ticket and its expert: with the weights that the dense model has now, or with fresh ones."""
        ratio = target.pruning_ratio
        ticket = Ticket(
            region=target.region,
            pruning_ratio=ratio,
            realised_ratio=realised_ratio(self._groups, ratio),
            importance=self._plan.importance,
            weights=self._plan.weights,
            interval=interval,
            step=self.trainer.step,
            distances=distances,
            converged=converged,
            kept_channels=kept_channels(self._groups, mask),
        )
        self._tickets.drawn[target.region] = ticket
        if not self.world.is_rank_zero:
            return
        dense, kept = self.trainer.network, ticket.kept_channels
        with self.trainer.using_weights(self.trainer.ema):
            if self._plan.inherit_weights:
                expert = extract_expert(dense, kept)
            else:
                expert = fresh_expert(dense, kept, self.job.seed, self.plan.timesteps, ratio)
            self._tickets.write(ticket, expert)

    def _not_drawn(self) -> TicketNotDrawnError:
        names = ", ".join(target.region for target in self._waiting())
        distances = self._describe(self._largest_distances())
        return TicketNotDrawnError(
            f"No ticket for region {names} after draw.max_intervals = {self._plan.max_intervals} masks "
            f"(one every {self._interval} steps): {distances}, threshold {self._plan.threshold}. "
            "Raise draw.max_intervals and launch again (the draw goes on where it stopped), or, in a new run, raise "
            "draw.threshold or draw.interval_steps, or set draw.on_timeout=take_last."
        )

    def _largest_distances(self) -> dict[str, float]:
        """Of each region that waits for its ticket and has a full queue."""
        queues = {target.region: queue_distances(self._masks[target.region], self._plan) for target in self._waiting()}
        return {region: max(distances) for region, distances in queues.items() if distances is not None}

    def _describe(self, largest: Mapping[str, float]) -> str:
        parts = []
        for target in self._targets:
            if target.region in self._tickets.drawn:
                parts.append(f"ticket {target.region} at step {self._tickets.drawn[target.region].step}")
            elif target.region in largest:
                parts.append(f"largest mask distance {largest[target.region]:.3f}")
            else:
                parts.append(f"{len(self._masks[target.region])} masks, queue of {self._plan.queue_length} filling")
        return "; ".join(parts)


class Slim(Stage):
    """The control of tickets: an expert of the pruning ratio's widths, the first channels of each norm group, fresh.

    The dense network's shapes are traced without its weights, which are never made. No step is taken.
    """

    def __init__(
        self, job: WorkerJob, plan: DrawStage, family: ModelFamily, randomness: StepRandomness, world: World
    ) -> None:
        (target,) = plan.targets
        with torch.device("meta"):
            dense = family.build_dense()
        groups = find_groups(dense, network_inputs(dense))
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
            kept_channels=kept_at(groups, target.pruning_ratio),
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


class Tickets:
    """Those drawn so far. `drawn`: by region; `digests`: the SHA-256 of their files, by path in the stage's folder."""

    def __init__(self, stage_folder: Path) -> None:
        self._folder = stage_folder
        self.drawn: dict[str, Ticket] = {}
        self.digests: dict[str, str] = {}

    def restore(self, digests: Mapping[str, str], regions: Iterable[str]) -> None:
        """Read the tickets that a checkpoint names. Those drawn after the checkpoint are drawn again."""
        self.digests = dict(digests)
        for region in regions:
            name = f"{TICKETS_FOLDER}/{region}/{TICKET_FILE}"
            if name in self.digests:
                data = read_verified(self._folder / name, self.digests[name])
                self.drawn[region] = Ticket.model_validate_json(data)

    def write(self, ticket: Ticket, expert: PrunedNetwork) -> None:
        def write(folder: Path) -> None:
            write_model(folder / TICKET_FILE, ticket)
            expert.save_pretrained(folder / EXPERT_FOLDER)
            seal_folder(folder)

        place = self._folder / TICKETS_FOLDER / ticket.region
        write_folder(place, write)
        self.digests |= {str(path.relative_to(self._folder)): file_digest(path) for path in files_in(place)}

    def files(self) -> list[Path]:
        return files_in(self._folder / TICKETS_FOLDER)


def fresh_expert(
    dense: nn.Module, kept: Mapping[str, KeptChannels], seed: int, timesteps: tuple[int, int], ratio: float
) -> PrunedNetwork:
    """An expert with these kept channels and fresh weights, on the CPU. Only the shapes of `dense` matter."""
    expert = extract_expert(dense, kept)
    torch.manual_seed(seed_from(seed, "fresh weights", *timesteps, str(ratio)))
    fresh: PrunedNetwork = type(expert).from_config(expert.config)
    return fresh
