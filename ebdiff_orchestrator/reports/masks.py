"""The masks that a run has recorded, and how far they lie from each other."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import draw_folder
from region_workers.storage.checkpoint_files import CHECKPOINT_FILE, CheckpointInfo, checkpoint_folders, checkpoint_name
from region_workers.storage.integrity import SEAL_FILE, read_verified, sealed_files
from region_workers.storage.tables import Row, read_masks
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


def fetch_masks(run: RunDirectory, plan: Plan) -> None:
    """Have the run's folder hold what `recorded_masks` reads there, as it is now: no weights, of an object store."""
    folders = [draw_folder(plan, region) for region in plan.regions]
    for stage in dict.fromkeys(str(Path(folder).parents[1]) for folder in folders):
        _fetch_newest(run, stage, MASKS_FILE)
    for folder in folders:
        for name in (SEAL_FILE, TICKET_FILE):
            run.fetch(f"{folder}/{name}")


def recorded_masks(run_dir: Path, plan: Plan) -> tuple[RecordedMasks, ...]:
    """The masks of every region that is pruned, as the run's draws, finished or not, have left them."""
    return tuple(_recorded(run_dir, plan, region) for region in plan.regions if region.pruning_ratio > 0)


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
    older = plan.queue_stride * np.arange(1, plan.queue_length)
    for newest in range(int(older[-1]), len(distances)):
        if plan.masks_agree(tuple(distances[newest, newest - older].tolist())):
            return newest
    return None


def _recorded(run_dir: Path, plan: Plan, region: RegionPlan) -> RecordedMasks:
    ticket_folder = run_dir / draw_folder(plan, region)
    stage_folder = ticket_folder.parents[1]
    stage_rows, finished = newest_of_stage(stage_folder, MASKS_FILE, read_masks)
    rows = [row for row in stage_rows or [] if row["region"] == region.name]
    return RecordedMasks(
        region=region.name,
        pruning_ratio=region.pruning_ratio,
        bits=int(str(rows[0]["bits"])) if rows else 0,
        intervals=np.array([row["interval"] for row in rows], dtype=np.int64),
        steps=np.array([row["step"] for row in rows], dtype=np.int64),
        packed=pack([_bytes_of(row) for row in rows]),
        ticket=_read_ticket(ticket_folder),
        finished=finished,
    )


def newest_of_run(
    run: RunDirectory, stage: str, name: str, read: Callable[[bytes], _Read]
) -> tuple[_Read | None, bool]:
    """`newest_of_stage` of a run that may be in an object store: no more of it is fetched than that."""
    _fetch_newest(run, stage, name)
    return newest_of_stage(run.path / stage, name, read)


def _fetch_newest(run: RunDirectory, stage: str, name: str) -> None:
    checkpoint = f"{stage}/{CHECKPOINTS_FOLDER}/{checkpoint_name(run.saved_steps(stage))}"
    for here in checkpoint_folders(run.path / stage / CHECKPOINTS_FOLDER) if run.files.is_copy else ():
        if here.name > Path(checkpoint).name:  # of an older run at this URL
            shutil.rmtree(here)
    for folder, says_whole in ((stage, RESULT_FILE), (checkpoint, CHECKPOINT_FILE)):
        for each in (says_whole, name):
            run.fetch(f"{folder}/{each}")


def newest_of_stage(stage_folder: Path, name: str, read: Callable[[bytes], _Read]) -> tuple[_Read | None, bool]:
    """A file of a stage as `read` takes its bytes, and whether the stage has ended; until then its newest checkpoint's.

    None: there is none yet, or the stage leaves none. UserError for one that is not what was written.
    """
    for last_try in (False, False, True):  # a worker may finish, or drop a checkpoint, between looking and reading
        finished = (stage_folder / RESULT_FILE).is_file()
        checkpoints = checkpoint_folders(stage_folder / CHECKPOINTS_FOLDER)
        if not finished and not checkpoints:
            break
        file = (stage_folder if finished else checkpoints[-1]) / name
        try:
            digests = _of_result(stage_folder) if finished else _of_checkpoint(file.parent)
            return read(read_verified(file, digests[name])) if name in digests else None, finished
        except (pa.ArrowException, ValueError, OSError) as error:
            if last_try:
                raise _bad_file(file, str(error).splitlines()[0]) from None
    return None, False


def _of_result(stage_folder: Path) -> dict[str, str]:
    """The digests of a finished stage's files, by name."""
    result = StageResult.model_validate_json((stage_folder / RESULT_FILE).read_bytes())
    return {item.path.removeprefix(f"{result.stage}/"): item.sha256 for item in result.artifacts}


def _of_checkpoint(folder: Path) -> dict[str, str]:
    return CheckpointInfo.model_validate_json((folder / CHECKPOINT_FILE).read_bytes()).sha256


def _read_ticket(folder: Path) -> Ticket | None:
    if not any((folder / name).is_file() for name in (SEAL_FILE, TICKET_FILE)):
        return None
    try:
        return Ticket.model_validate_json(read_verified(folder / TICKET_FILE, sealed_files(folder).get(TICKET_FILE)))
    except ValueError as error:
        raise _bad_file(folder / TICKET_FILE, str(error).splitlines()[0]) from None


def _bytes_of(row: Row) -> bytes:
    mask = row["mask"]
    assert isinstance(mask, bytes)
    return mask


def _bad_file(file: Path | None, reason: str) -> UserError:
    return UserError(
        f"{file}: expected as its stage has written it, but it does not read ({reason}). Restore the file."
    )
