"""The draw stage: train the dense model on a range of timesteps until every target's ticket has appeared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from region_workers.networks.pruned_unet import extract_expert
from region_workers.pruning.groups import ChannelGroup, find_groups
from region_workers.pruning.importance import channel_scores, sequential_masks
from region_workers.pruning.mask import compute_mask, kept_channels
from region_workers.pruning.widths import realised_ratio
from region_workers.storage.durable import write_folder, write_model
from region_workers.storage.integrity import file_digest, read_verified, seal_folder
from region_workers.storage.tables import Row, read_masks, write_masks, write_metrics
from region_workers.training.checkpoints import Checkpoint, Checkpoints
from region_workers.training.convergence import has_converged, queue_distances
from region_workers.training.device import World
from region_workers.training.failures import StopRequestedError, TicketNotDrawnError
from region_workers.training.family import ModelFamily
from region_workers.training.gradients import accumulate_importance_gradients
from region_workers.training.randomness import StepRandomness
from region_workers.training.reporter import StageReporter, stopped_at
from region_workers.training.results import files_in, publish
from region_workers.training.timesteps import TimestepSampler
from region_workers.training.trainer import Trainer
from schemas.digest import seed_from
from schemas.job import (
    CHECKPOINTS_FOLDER,
    EXPERT_FOLDER,
    MASKS_FILE,
    METRICS_FILE,
    TICKET_FILE,
    TICKETS_FOLDER,
    DrawStage,
    DrawTarget,
    Ticket,
    WorkerJob,
)


class Draw:
    """One draw stage in progress."""

    def __init__(
        self,
        job: WorkerJob,
        stage: DrawStage,
        family: ModelFamily,
        randomness: StepRandomness,
        world: World,
    ) -> None:
        self._job, self._stage, self._plan, self._world = job, stage, job.draw_plan, world
        self._family, self._randomness = family, randomness
        self._folder = Path(job.run_dir) / stage.name
        self._interval = self._plan.interval_steps or family.steps_per_epoch
        dense = family.build_dense()
        self._groups: tuple[ChannelGroup, ...] = find_groups(dense, family.example_inputs(dense))
        keep_ema = self._plan.weights == "ema"
        sampler = TimestepSampler(stage.timesteps, job.training.timesteps, job.diffusion, world.device)
        self._trainer = Trainer(dense, family, randomness, sampler, job.training, world, keep_ema)
        last_step = self._interval * self._plan.max_intervals
        self._reporter = StageReporter(job, stage.name, stage.key, last_step, world, job.training.learning_rate)
        place, keep = self._folder / CHECKPOINTS_FOLDER, job.checkpointing.keep
        self._checkpoints = Checkpoints(place, stage.key, keep, world.on_deleted, job.attempt, job.owner)
        self._masks: dict[str, list[torch.Tensor]] = {target.region: [] for target in stage.targets}
        self._mask_rows: list[Row] = []
        self._tickets: dict[str, Ticket] = {}
        self._ticket_files: dict[str, str] = {}  # their SHA-256, by path in the stage's folder

    def run(self) -> None:
        """Go on from the last good checkpoint until every ticket is drawn, then publish the result.

        Raises TicketNotDrawnError after `draw.max_intervals` masks, unless the plan says to take the last one.
        """
        with self._checkpoints:
            self._run()

    def _run(self) -> None:
        self._restore(self._newest_checkpoint())
        for target in self._stage.targets:
            if target.pruning_ratio == 0 and target.region not in self._tickets:
                self._take_dense(target)
        try:
            if self._plan.method == "one-shot":
                self._take_masks_at_once()
            self._train_until_drawn()
        except StopRequestedError:
            self._save()
            self._checkpoints.wait()
            self._world.barrier()
            self._reporter.announce("stopped", self._trainer.step)
            raise
        self._publish()

    def _train_until_drawn(self) -> None:
        self._take_due_masks()  # those that a stop left out
        while self._waiting():
            self._check_intervals_left()
            self._trainer.train_step()
            if self._reporter.after_step(self._trainer):
                raise stopped_at(self._trainer.step)
            self._take_due_masks()
            if self._trainer.step % self._job.checkpointing.interval_steps == 0 and self._waiting():
                self._save()

    def _take_due_masks(self) -> None:
        """Take the masks of an interval that ends here, unless they are taken."""
        step = self._trainer.step
        if step and step % self._interval == 0 and not (self._mask_rows and self._mask_rows[-1]["step"] == step):
            self._take_masks()

    def _waiting(self) -> list[DrawTarget]:
        return [target for target in self._stage.targets if target.region not in self._tickets]

    def _take_masks_at_once(self) -> None:
        """The tickets of a network that is trained already: one mask each, before any step."""
        for target, mask in self._new_masks(interval=0):
            if target.region not in self._tickets:
                self._take_ticket(target, mask, (), 0, converged=True)

    def _new_masks(self, interval: int) -> list[tuple[DrawTarget, torch.Tensor]]:
        """One mask for each target that is pruned, rank zero's, also noted for the stage's file."""
        step = self._trainer.step
        mask_at = self._mask_maker(step)
        masks = []
        for target in self._stage.targets:
            if target.pruning_ratio == 0:
                continue
            mask = self._world.broadcast(mask_at(target.pruning_ratio)).cpu()
            self._mask_rows.append(_mask_row(target, interval, step, mask))
            masks.append((target, mask))
        return masks

    def _take_masks(self) -> None:
        """The masks of an interval; a target whose masks agree gets its ticket."""
        self._trainer.check_finite()
        interval = self._trainer.step // self._interval
        for target, mask in self._new_masks(interval):
            self._masks[target.region].append(mask)
            if target.region in self._tickets:
                continue
            distances = queue_distances(self._masks[target.region], self._plan)
            converged = has_converged(distances, self._plan)
            late = self._plan.on_timeout == "take_last" and interval == self._plan.max_intervals
            if converged or late:
                self._take_ticket(target, mask, distances or (), interval, converged)
        self._reporter.note(self._describe_distances())

    def _mask_maker(self, step: int) -> Callable[[float], torch.Tensor]:
        """From a pruning ratio to the mask of the weights as they are."""
        plan, weights = self._plan, self._ranked_weights()
        gradients = None
        if plan.importance in ("taylor", "diff-pruning"):
            with self._trainer.using_weights(self._trainer.ema):
                gradients = accumulate_importance_gradients(
                    self._trainer.network,
                    self._family,
                    self._randomness,
                    self._stage.timesteps,
                    self._plan,
                    self._job.training,
                    self._stay_alive,
                )
        if plan.scoring == "sequential" and plan.importance != "random":  # whose scores know nothing of the others
            return sequential_masks(self._groups, weights, plan.importance, gradients, plan.gradient_rule)
        generator = self._randomness.generator(step, "random-importance")
        scores = channel_scores(self._groups, weights, plan.importance, gradients, generator, plan.gradient_rule)
        return partial(compute_mask, self._groups, scores)

    def _stay_alive(self) -> None:
        """Between two passes of a long mask: say that the worker is alive, and stop if asked to."""
        if self._reporter.heartbeat(self._trainer.step) and self._world.size == 1 and self._reporter.stop_requested():
            self._trainer.network.zero_grad(set_to_none=True)
            raise stopped_at(self._trainer.step)

    def _ranked_weights(self) -> dict[str, torch.Tensor]:
        if self._plan.weights == "ema":
            return self._trainer.final_weights()
        return {name: parameter.detach() for name, parameter in self._trainer.parameters.items()}

    def _take_ticket(
        self, target: DrawTarget, mask: torch.Tensor, distances: tuple[float, ...], interval: int, converged: bool
    ) -> None:
        ticket = Ticket(
            region=target.region,
            pruning_ratio=target.pruning_ratio,
            realised_ratio=realised_ratio(self._groups, target.pruning_ratio),
            importance=self._plan.importance,
            weights=self._plan.weights,
            interval=interval,
            step=self._trainer.step,
            distances=distances,
            converged=converged,
            kept_channels=kept_channels(self._groups, mask),
        )
        self._write_ticket(ticket)

    def _take_dense(self, target: DrawTarget) -> None:
        """A region that is not pruned needs no mask: its expert is the dense network as it was built."""
        ticket = Ticket(
            region=target.region,
            pruning_ratio=0.0,
            realised_ratio=0.0,
            importance=self._plan.importance,
            weights=self._plan.weights,
            interval=0,
            step=0,
            distances=(),
            converged=True,
            kept_channels={},
        )
        self._write_ticket(ticket)

    def _write_ticket(self, ticket: Ticket) -> None:
        """The ticket and the expert: with the weights that the dense model has now, or with fresh ones."""
        self._tickets[ticket.region] = ticket
        if not self._world.is_rank_zero:
            return
        with self._trainer.using_weights(self._trainer.ema if self._plan.weights == "ema" else None):
            expert = extract_expert(self._trainer.network, ticket.kept_channels)
        if not self._plan.inherit_weights:
            torch.manual_seed(
                seed_from(self._job.seed, "fresh weights", *self._stage.timesteps, str(ticket.pruning_ratio))
            )
            expert = type(expert).from_config(expert.config)

        def write(folder: Path) -> None:
            write_model(folder / TICKET_FILE, ticket)
            expert.save_pretrained(folder / EXPERT_FOLDER)
            seal_folder(folder)

        place = self._folder / TICKETS_FOLDER / ticket.region
        write_folder(place, write)
        self._ticket_files |= {str(path.relative_to(self._folder)): file_digest(path) for path in files_in(place)}

    def _check_intervals_left(self) -> None:
        if self._trainer.step < self._interval * self._plan.max_intervals:
            return
        self._save()
        self._checkpoints.wait()
        names = ", ".join(target.region for target in self._waiting())
        raise TicketNotDrawnError(
            f"No ticket for region {names} after draw.max_intervals = {self._plan.max_intervals} masks "
            f"(one every {self._interval} steps): {self._describe_distances()}, threshold {self._plan.threshold}. "
            "Raise draw.max_intervals and launch again (the draw goes on where it stopped), or, in a new run, raise "
            "draw.threshold or draw.interval_steps, or set draw.on_timeout=take_last."
        )

    def _describe_distances(self) -> str:
        parts = []
        for target in self._stage.targets:
            if target.region in self._tickets:
                ticket = self._tickets[target.region]
                parts.append(f"ticket {target.region} at step {ticket.step}")
                continue
            masks = self._masks[target.region]
            distances = queue_distances(masks, self._plan)
            if distances is None:
                parts.append(f"{len(masks)} masks, queue of {self._plan.queue_length} filling")
            else:
                parts.append(f"largest mask distance {max(distances):.3f}")
        return "; ".join(parts)

    def _save(self) -> None:
        self._trainer.check_finite()
        if self._world.is_rank_zero:
            self._checkpoints.save(
                self._trainer.step,
                self._reporter.active_s,
                self._trainer.state_tensors(),
                self._reporter.metrics,
                partial(_write_masks, list(self._mask_rows)),
                self._ticket_files,
            )
        self._world.barrier()

    def _newest_checkpoint(self) -> Checkpoint | None:
        """The last good checkpoint whose tickets are there, as they were drawn: no checkpoint holds their weights."""
        checkpoint = self._checkpoints.newest_good(self._world)
        self._reporter.note(self._checkpoints.passed_over)
        return checkpoint

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        """Masks and tickets follow from the checkpoint; tickets drawn after it are drawn again."""
        if checkpoint is None:
            self._reporter.begin(0, [], 0.0)
            return
        self._trainer.load_state_tensors(checkpoint.tensors, checkpoint.info.step)
        self._mask_rows = read_masks(checkpoint.files[MASKS_FILE])
        for row in self._mask_rows:
            self._masks[str(row["region"])].append(_mask_of(row))
        self._ticket_files = dict(checkpoint.info.beside)
        for target in self._stage.targets:
            name = f"{TICKETS_FOLDER}/{target.region}/{TICKET_FILE}"
            if name in self._ticket_files:
                data = read_verified(self._folder / name, self._ticket_files[name])
                self._tickets[target.region] = Ticket.model_validate_json(data)
        self._reporter.begin(checkpoint.info.step, checkpoint.metrics, checkpoint.info.active_s)

    def _publish(self) -> None:
        self._trainer.check_finite()
        if self._world.is_rank_zero:
            write_masks(self._folder / MASKS_FILE, self._mask_rows)
            write_metrics(self._folder / METRICS_FILE, self._reporter.metrics)
            files = [
                self._folder / MASKS_FILE,
                self._folder / METRICS_FILE,
                *files_in(self._folder / TICKETS_FOLDER),
            ]
            metrics = {f"{region}.drawn_at_step": float(t.step) for region, t in self._tickets.items()}
            publish(self._job, self._reporter, self._world, self._trainer.step, files, metrics)
            self._checkpoints.clear()
        self._world.barrier()


def _write_masks(rows: list[Row], folder: Path) -> None:
    write_masks(folder / MASKS_FILE, rows)


def _mask_row(target: DrawTarget, interval: int, step: int, mask: torch.Tensor) -> Row:
    return {
        "region": target.region,
        "interval": interval,
        "step": step,
        "bits": mask.numel(),
        "mask": np.packbits(mask.numpy()).tobytes(),
    }


def _mask_of(row: Row) -> torch.Tensor:
    packed, bits = row["mask"], row["bits"]
    assert isinstance(packed, bytes)
    assert isinstance(bits, int)
    return torch.from_numpy(np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=bits).astype(bool))
