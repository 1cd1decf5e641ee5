"""Checkpoints of one stage: folders that are whole or absent, verified before they are trusted."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from region_workers.storage.checkpoint_files import (
    CHECKPOINT_FILE,
    CheckpointInfo,
    checkpoint_folders,
    checkpoint_info,
    checkpoint_name,
    verified_checkpoint,
)
from region_workers.storage.durable import make_folder, remove_folder, remove_leftovers, write_folder
from region_workers.storage.integrity import DamagedFileError, check_file, file_digests, read_verified
from region_workers.storage.tables import Row, read_metrics, write_metrics
from region_workers.training.device import World
from schemas.errors import RunFailed

_STATE, _METRICS = "state.safetensors", "metrics.parquet"
_LOOKS = 3


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, loaded; `files`: the bytes of those that are not its tensors."""

    info: CheckpointInfo
    tensors: dict[str, torch.Tensor]
    metrics: list[Row]
    files: dict[str, bytes]


class Checkpoints:
    """The checkpoints of one stage, newest last; only the newest `keep` stay. `on_deleted` is told of each deleted one.

    `attempt` and `owner`: as in CheckpointInfo.
    One at a time is written in the background, from a copy on the host, while training goes on. Leaving the context
    waits for it. `passed_over` says, for people, which damaged ones `newest_good` found; empty: none.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        keep: int,
        on_deleted: Callable[[Path], None] | None = None,
        attempt: int = 0,
        owner: str = "",
    ) -> None:
        self._folder, self._key, self._keep, self._on_deleted = folder, key, keep, on_deleted
        self._attempt, self._owner = attempt, owner
        self._on_host: dict[str, torch.Tensor] = {}  # memory for the copies, asked for once and then used again
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self.passed_over = ""
        make_folder(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()

    def save(
        self,
        step: int,
        active_s: float,
        tensors: dict[str, torch.Tensor],
        metrics: list[Row],
        write_more: Callable[[Path], None] | None = None,
        beside: Mapping[str, str] | None = None,
    ) -> None:
        """Take one checkpoint: what is given is copied now, and written durably while the caller goes on.

        `write_more` may add files of the stage's own, from what does not change any more; `beside`: as in
        CheckpointInfo. A step that has a good checkpoint already keeps it: the same step has the same state. Raises
        what the last writing failed with.
        """
        self.wait()
        if verified_checkpoint(self._path(step), self._key) is not None:
            return
        copies, rows = self._copied(tensors), list(metrics)
        info = CheckpointInfo(
            key=self._key,
            step=step,
            active_s=active_s,
            sha256={},
            beside=dict(beside or {}),
            attempt=self._attempt,
            owner=self._owner,
        )
        self._writing = self._writer.submit(self._write, info, copies, rows, write_more)

    def _copied(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors as they are now, contiguous on the host; valid until the next call."""
        for name, tensor in tensors.items():
            if name not in self._on_host:  # a copy to pinned memory runs at the bus's full speed
                empty = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._on_host[name] = empty
            self._on_host[name].copy_(tensor.detach(), non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.current_stream().synchronize()
        return {name: self._on_host[name] for name in tensors}

    def wait(self) -> None:
        """Until the last checkpoint is on disk; raises what its writing failed with."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(
        self,
        info: CheckpointInfo,
        tensors: dict[str, torch.Tensor],
        metrics: list[Row],
        write_more: Callable[[Path], None] | None,
    ) -> None:
        def write(folder: Path) -> None:
            save_file(tensors, folder / _STATE)
            write_metrics(folder / _METRICS, metrics)
            if write_more is not None:
                write_more(folder)
            whole = info.model_copy(update={"sha256": file_digests(folder)})
            (folder / CHECKPOINT_FILE).write_text(whole.model_dump_json(indent=2))

        write_folder(self._path(info.step), write)
        up_to_here = [path for path in checkpoint_folders(self._folder) if path.name <= checkpoint_name(info.step)]
        for old in up_to_here[: -self._keep]:  # those of more steps were passed over, and are no newer
            self._delete(old)

    def newest_good(self, world: World, most_steps: int | None = None) -> Checkpoint | None:
        """The newest checkpoint of this stage's key that is whole: rank zero's choice, on every worker.

        Damaged ones, and what a killed writer left, are deleted. Those of more than `most_steps` are passed over.
        """
        found = self._newest_good_here(most_steps) if world.is_rank_zero else None
        step = world.broadcast_int(found.info.step if found is not None else -1)
        if world.is_rank_zero or step < 0:
            return found
        try:
            return _load(self._path(step), self._key)
        except DamagedFileError as error:
            raise RunFailed(f"{error}, or it was not for the leading worker. Go on with `ebdiff resume`.") from None

    def _newest_good_here(self, most_steps: int | None) -> Checkpoint | None:
        remove_leftovers(self._folder)
        for folder in reversed(checkpoint_folders(self._folder)):
            try:
                checkpoint = _load(folder, self._key)
            except DamagedFileError as error:
                self.passed_over += f"checkpoint {folder.name} was damaged or of another ticket ({error.path.name}); "
                self._delete(folder)
            else:
                if most_steps is None or checkpoint.info.step <= most_steps:
                    return checkpoint
        return None

    def _path(self, step: int) -> Path:
        return self._folder / checkpoint_name(step)

    def clear(self) -> None:
        """Delete every checkpoint, once the stage's result is on disk."""
        self.wait()
        for folder in checkpoint_folders(self._folder):
            self._delete(folder)
        remove_leftovers(self._folder)
        with suppress(OSError):  # somebody else's files are in it
            self._folder.rmdir()

    def _delete(self, folder: Path) -> None:
        remove_folder(folder)
        if self._on_deleted is not None:
            self._on_deleted(folder)


def newest_readable(folder: Path, key: str) -> Checkpoint | None:
    """The newest whole checkpoint in a stage's folder, for a reader beside the stage's worker; nothing is changed.

    The worker may delete a checkpoint that is being read; then there is a newer one.
    """
    for _ in range(_LOOKS):
        for path in reversed(checkpoint_folders(folder)):
            with suppress(DamagedFileError):
                return _load(path, key)
    return None


def _load(folder: Path, key: str) -> Checkpoint:
    """The checkpoint of the bytes that were verified. DamagedFileError if it is not whole, or not in its place."""
    info = checkpoint_info(folder, key)
    read = [name for name in info.sha256 if name != _STATE]
    files = {name: read_verified(folder / name, info.sha256[name]) for name in read}
    try:
        state, metrics = _mapped(folder / _STATE, info.sha256.get(_STATE)), read_metrics(files.get(_METRICS, b""))
    except (SafetensorError, pa.ArrowException) as error:  # whole, and yet no checkpoint: it was not we who wrote
        reason = str(error).splitlines()[0]
        raise RunFailed(f"{folder} does not read ({reason}); expected a checkpoint. Delete the folder.") from None
    return Checkpoint(info, state, metrics, files)


def _mapped(path: Path, sha256: str | None) -> dict[str, torch.Tensor]:
    """The tensors in a file: mapped before it is hashed, so that what is hashed is what is mapped, and held once."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError):
        check_file(path, sha256)
        raise
    check_file(path, sha256)
    return tensors
