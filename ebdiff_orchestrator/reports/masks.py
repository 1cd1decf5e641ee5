"""The masks that a run has recorded, and how far they lie from each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import draw_folder
from region_workers.storage.checkpoint_files import CHECKPOINT_FILE, CheckpointInfo, checkpoint_name
from region_workers.storage.integrity import SEAL_FILE, read_verified, sealed_files
from region_workers.storage.tables import read_masks
from schemas.errors import UserError
from schemas.job import CHECKPOINTS_FOLDER, MASKS_FILE, RESULT_FILE, TICKET_FILE, StageResult, Ticket
from schemas.plan import DrawPlan, Plan
from schemas.regions import RegionPlan

_Read = TypeVar("_Read")
Words = npt.NDArray[np.uint64]
Distances = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NamedMask:
    """A mask as packed words, uint64 [words], and what to call it."""

    name: str
    bits: int
    words: Words


@dataclass(frozen=True)
class RecordedMasks:
    """One region's masks, oldest first: `packed` uint64 [masks, words], padded with zeros; `ticket` once it is drawn.

    `intervals` and `steps` are int64 [masks]. `finished`: the draw has ended; else these are the masks so far.
    """

    region: str
    pruning_ratio: float
    bits: int
    intervals: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    packed: Words
    ticket: Ticket | None
    finished: bool

    def __len__(self) -> int:
        return len(self.packed)

    def chosen(self, prefix: str = "") -> NamedMask:
        """The ticket's mask; the newest one while there is no ticket, which its name says. IndexError without masks."""
        drawn = np.flatnonzero(self.steps == (self.ticket.step if self.ticket else None))
        if len(drawn):
            return NamedMask(f"{prefix}{self.region}", self.bits, self.packed[int(drawn[-1])])
        return NamedMask(f"{prefix}{self.region} (step {self.steps[-1]}, not drawn)", self.bits, self.packed[-1])


def recorded_masks(run: RunDirectory, plan: Plan) -> tuple[RecordedMasks, ...]:
    """The masks of every region that is pruned, as the run's draws, finished or not, have left them."""
    return tuple(_recorded(run, plan, region) for region in plan.regions if region.pruning_ratio > 0)


def distance_matrix(packed: Words, bits: int) -> Distances:
    """The normalised Hamming distance of each pair of masks (paper, figures 2 and 4): [masks, masks]."""
    differing = np.empty((len(packed), len(packed)), dtype=np.int64)
    for index, mask in enumerate(packed):  # a row at a time, for memory
        differing[index] = np.bitwise_count(packed ^ mask).sum(axis=1)
    return differing / max(bits, 1)


def kept_bits(mask: Words) -> int:
    """How many channels a packed mask [words] keeps."""
    return int(np.bitwise_count(mask).sum())


def pack(masks: Sequence[bytes]) -> Words:
    """Masks as numpy.packbits gives them, as uint64 [masks, words], padded with zeros."""
    words = max((-(-len(mask) // 8) for mask in masks), default=0)
    joined = b"".join(mask.ljust(words * 8, b"\0") for mask in masks)
    return np.frombuffer(joined, dtype=np.uint64).reshape(len(masks), words)


def drawn_at(distances: Distances, plan: DrawPlan) -> int | None:
    """The position of the first mask at which a queue over these distances would have agreed; None: at none of them."""
    oldest = plan.queue_stride * (plan.queue_length - 1)
    for newest in range(oldest, len(distances)):
        if plan.masks_agree(tuple(distances[newest, newest - oldest : newest : plan.queue_stride].tolist())):
            return newest
    return None


def _recorded(run: RunDirectory, plan: Plan, region: RegionPlan) -> RecordedMasks:
    ticket_folder = draw_folder(plan, region)
    stage_rows, finished = newest_of_run(run, str(Path(ticket_folder).parents[1]), MASKS_FILE, read_masks)
    rows = [row for row in stage_rows or [] if row["region"] == region.name]
    return RecordedMasks(
        region=region.name,
        pruning_ratio=region.pruning_ratio,
        bits=int(str(rows[0]["bits"])) if rows else 0,
        intervals=np.array([row["interval"] for row in rows], dtype=np.int64),
        steps=np.array([row["step"] for row in rows], dtype=np.int64),
        packed=pack([cast(bytes, row["mask"]) for row in rows]),
        ticket=_read_ticket(run, ticket_folder),
        finished=finished,
    )


def newest_of_run(
    run: RunDirectory, stage: str, name: str, read: Callable[[bytes], _Read]
) -> tuple[_Read | None, bool]:
    """A file of a stage as `read` takes its bytes, and whether the stage has ended; until then its newest checkpoint's.

    None: there is none yet, or the stage leaves none. UserError for one that is not what was written. Of a run in an
    object store no more is fetched than that.
    """
    for last_try in (False, False, True):  # a worker may finish, or drop a checkpoint, between looking and reading
        finished = run.fetch(f"{stage}/{RESULT_FILE}").is_file()
        steps = run.saved_steps(stage)
        if not finished and not steps:
            break
        folder = stage if finished else f"{stage}/{CHECKPOINTS_FOLDER}/{checkpoint_name(steps)}"
        says_whole = run.fetch(f"{folder}/{RESULT_FILE if finished else CHECKPOINT_FILE}")
        file = run.fetch(f"{folder}/{name}")
        try:
            digests = _digests_in(says_whole)
            return read(read_verified(file, digests[name])) if name in digests else None, finished
        except (pa.ArrowException, ValueError, OSError) as error:
            if last_try:
                raise _bad_file(file, str(error).splitlines()[0]) from None
    return None, False


def _digests_in(file: Path) -> dict[str, str]:
    """The digests of the files beside it, by name, that a stage's result or a checkpoint's own file tells."""
    if file.name == CHECKPOINT_FILE:
        return CheckpointInfo.model_validate_json(file.read_bytes()).sha256
    result = StageResult.model_validate_json(file.read_bytes())
    return {item.path.removeprefix(f"{result.stage}/"): item.sha256 for item in result.artifacts}


def _read_ticket(run: RunDirectory, folder: str) -> Ticket | None:
    seal, file = (run.fetch(f"{folder}/{name}") for name in (SEAL_FILE, TICKET_FILE))
    if not seal.is_file() and not file.is_file():
        return None
    try:
        return Ticket.model_validate_json(read_verified(file, sealed_files(file.parent).get(TICKET_FILE)))
    except ValueError as error:
        raise _bad_file(file, str(error).splitlines()[0]) from None


def _bad_file(file: Path, reason: str) -> UserError:
    return UserError(
        f"{file}: expected as its stage has written it, but it does not read ({reason}). Restore the file."
    )
