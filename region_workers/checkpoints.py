"""Checkpoints of one stage: folders that are whole or absent, verified before they are trusted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from region_workers.checkpoint_folders import checkpoint_folders, checkpoint_name
from region_workers.device import World, ignore
from region_workers.host_copy import HostCopy
from schemas.digest import file_digest
from schemas.durable import remove_folder, remove_leftovers, write_folder
from schemas.errors import RunFailed
from schemas.sealed import Sealed
from schemas.tables import Row, read_metrics, write_metrics

_STATE, _METRICS, _INFO = "state.safetensors", "metrics.parquet", "checkpoint.json"


class CheckpointInfo(Sealed):
    """What a checkpoint says of itself: the key of its stage, updates made, seconds worked, a digest a file."""

    key: str
    step: int
    active_s: float
    sha256: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, loaded."""

    folder: Path
    info: CheckpointInfo
    tensors: dict[str, torch.Tensor]
    metrics: list[Row]


def find_checkpoint(folder: Path, key: str, most_steps: int) -> Path | None:
    """The whole checkpoint of this key with the most steps, up to `most_steps`; nothing is changed."""
    for path in reversed(checkpoint_folders(folder)):
        info = _verified(path, key)
        if info is not None and info.step <= most_steps:
            return path
    return None


class Checkpoints:
    """The checkpoints of one stage, newest last; only the newest `keep` stay. `retired` is told of each deleted one.

    One at a time is written in the background, from a copy on the host, while training goes on. Leaving the context
    waits for it. `passed_over` says, for people, which damaged ones `newest_good` found; empty: none.
    """

    def __init__(self, folder: Path, key: str, keep: int, retired: Callable[[Path], None] = ignore) -> None:
        self._folder, self._key, self._keep, self._retired = folder, key, keep, retired
        self._copy = HostCopy()
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self.passed_over = ""
        folder.mkdir(parents=True, exist_ok=True)

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
    ) -> None:
        """Take one checkpoint: what is given is copied now, and written durably while the caller goes on.

        `write_more` may add files of the stage's own, from what does not change any more. A step that has a good
        checkpoint already keeps it: the same step has the same state. Raises what the last writing failed with.
        """
        self.wait()
        if _verified(self._path(step), self._key) is not None:
            return
        copies, rows = self._copy.take(tensors), list(metrics)
        self._writing = self._writer.submit(self._write, step, active_s, copies, rows, write_more)

    def wait(self) -> None:
        """Until the last checkpoint is on disk; raises what its writing failed with."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(
        self,
        step: int,
        active_s: float,
        tensors: dict[str, torch.Tensor],
        metrics: list[Row],
        write_more: Callable[[Path], None] | None,
    ) -> None:
        def write(folder: Path) -> None:
            save_file(tensors, folder / _STATE)
            write_metrics(folder / _METRICS, metrics)
            if write_more is not None:
                write_more(folder)
            digests = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
            info = CheckpointInfo(key=self._key, step=step, active_s=active_s, sha256=digests)
            (folder / _INFO).write_text(info.model_dump_json(indent=2))

        write_folder(self._path(step), write)
        for old in checkpoint_folders(self._folder)[: -self._keep]:
            self._retire(old)

    def newest_good(self, world: World, most_steps: int | None = None) -> Checkpoint | None:
        """The newest checkpoint of this stage's key that is whole: the leading worker's choice, on every worker.

        Damaged ones, and what a killed writer left, are deleted. Those of more than `most_steps` are passed over.
        """
        step = world.from_leader(self._newest_good_step(most_steps) if world.leads else -1)
        return None if step < 0 else self._load(self._path(step))

    def _newest_good_step(self, most_steps: int | None) -> int:
        remove_leftovers(self._folder)
        for folder in reversed(checkpoint_folders(self._folder)):
            info = _verified(folder, self._key)
            if info is None:
                self.passed_over += f"checkpoint {folder.name} was damaged or of another ticket; "
                self._retire(folder)
            elif most_steps is None or info.step <= most_steps:
                return info.step
        return -1

    def _load(self, folder: Path) -> Checkpoint:
        info = CheckpointInfo.model_validate_json((folder / _INFO).read_text())
        try:
            return Checkpoint(folder, info, load_file(folder / _STATE), read_metrics(folder / _METRICS))
        except (SafetensorError, OSError, ValueError) as error:  # whole, and yet no checkpoint: it was not we who wrote
            reason = str(error).splitlines()[0]
            raise RunFailed(f"{folder} does not read ({reason}); expected a checkpoint. Delete the folder.") from None

    def _path(self, step: int) -> Path:
        return self._folder / checkpoint_name(step)

    def clear(self) -> None:
        """Delete every checkpoint, once the stage's result is on disk."""
        self.wait()
        for folder in checkpoint_folders(self._folder):
            self._retire(folder)
        remove_leftovers(self._folder)
        with suppress(OSError):  # somebody else's files are in it
            self._folder.rmdir()

    def _retire(self, folder: Path) -> None:
        remove_folder(folder)
        self._retired(folder)


def _verified(folder: Path, key: str) -> CheckpointInfo | None:
    info_file = folder / _INFO
    if not info_file.is_file():
        return None
    try:
        info = CheckpointInfo.model_validate_json(info_file.read_text())
    except ValueError:
        return None
    files = {name: folder / name for name in info.sha256}
    whole = all(path.is_file() and file_digest(path) == info.sha256[name] for name, path in files.items())
    in_place = info.key == key and folder.name == checkpoint_name(info.step)
    return info if whole and in_place else None
