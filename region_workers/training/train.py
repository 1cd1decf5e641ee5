"""The train stage: one expert, from its ticket's inherited weights, with a fresh optimizer, on its region."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from region_workers.networks.dense import load_verified
from region_workers.networks.packed_weights import write_weights
from region_workers.storage.checkpoint_files import state_key, ticket_artifacts, ticket_folder
from region_workers.storage.durable import write_folder
from region_workers.storage.integrity import DamagedFileError, check_sealed, files_in
from region_workers.storage.tables import read_mask_moves, write_mask_moves
from region_workers.training.checkpoints import Checkpoint
from region_workers.training.device import World
from region_workers.training.family import ModelFamily
from region_workers.training.randomness import StepRandomness
from region_workers.training.stage_loop import Stage
from schemas.errors import RunFailed
from schemas.job import (
    EXPERT_FOLDER,
    MASK_MOVES_FILE,
    REPLACED_SHARE,
    WEIGHTS_FILE,
    TrainStage,
    WorkerJob,
)


class Train(Stage):
    """Train a ticket's expert to `plan.steps` updates; what it hands on are the EMA weights, if there is an EMA."""

    can_be_extended = True

    def __init__(
        self, job: WorkerJob, plan: TrainStage, family: ModelFamily, randomness: StepRandomness, world: World
    ) -> None:
        ticket = ticket_folder(Path(job.run_dir), plan)
        _check_ticket(ticket)
        self.inputs = ticket_artifacts(Path(job.run_dir), plan)
        self._expert = load_verified(ticket / EXPERT_FOLDER)
        super().__init__(job, plan, self._expert, family, randomness, world, plan.steps, sparsity=plan.sparsity)
        self.checkpoint_key = state_key(plan, self.inputs)
        self.most_steps = self._steps = plan.steps

    def restore(self, checkpoint: Checkpoint) -> None:
        if self.trainer.sparse.is_sparse:
            self.trainer.sparse.moves.restore(read_mask_moves(checkpoint.files[MASK_MOVES_FILE]))

    def checkpoint_writer(self) -> Callable[[Path], None] | None:
        if not self.trainer.sparse.is_sparse:
            return None
        moves = self.trainer.sparse.moves.table()
        return lambda folder: write_mask_moves(folder / MASK_MOVES_FILE, moves)

    def is_done(self) -> bool:
        return self.trainer.step >= self._steps

    def write_products(self) -> list[Path]:
        """A diffusers model folder with the weights that the stage hands on, packed where they are sparse."""

        def write(folder: Path) -> None:
            cast(Any, self._expert).save_config(folder)
            write_weights(folder / WEIGHTS_FILE, self.trainer.final_weights(), self.trainer.sparse.masks)

        write_folder(self.folder / EXPERT_FOLDER, write)
        files = files_in(self.folder / EXPERT_FOLDER)
        if write_moves := self.checkpoint_writer():
            write_moves(self.folder)
            files.append(self.folder / MASK_MOVES_FILE)
        return files

    def figures(self) -> dict[str, float]:
        loss = self.reporter.metrics[-1]["loss"] if self.reporter.metrics else None
        figures = {"loss": loss} if isinstance(loss, float) else {}
        sparse = self.trainer.sparse
        return figures | ({REPLACED_SHARE: sparse.moves.replaced_share()} if sparse.is_sparse else {})


def _check_ticket(folder: Path) -> None:
    try:
        check_sealed(folder, own_seal=True)
    except DamagedFileError as error:
        raise RunFailed(
            f"{error.path} is missing or not what the draw wrote. Go on with `ebdiff resume`: the ticket is drawn "
            "again, to the same bits."
        ) from None
