"""Checkpoints as their folders tell of them: whose they are and whether they are whole; no torch is needed for it."""

import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from region_workers.storage.integrity import DamagedFileError, artifact, check_files
from schemas.digest import digest
from schemas.job import EXPERT_FOLDER, TICKET_FILE, TICKETS_FOLDER, WEIGHTS_FILE, Artifact, TrainStage
from schemas.section import Sealed

CHECKPOINT_FILE = "checkpoint.json"  # says that the files beside it are whole
_PREFIX = "step-"
_NAME = re.compile(rf"{_PREFIX}([0-9]{{9}}|[1-9][0-9]{{9,}})")


class CheckpointInfo(Sealed):
    """What a checkpoint says of itself: the key of its stage, updates made, seconds worked, a digest a file.

    `beside`: digests of what its state goes with, by path in the stage's folder; without that it is no good. `attempt`
    and `owner` are those of the job that wrote it, and no part of the state.
    """

    key: str
    step: int
    active_s: float
    sha256: dict[str, str]
    beside: dict[str, str] = Field(default_factory=dict)
    attempt: int = 0
    owner: str = ""


def checkpoint_name(step: int) -> str:
    return f"{_PREFIX}{step:09d}"


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in a stage's folder, whole or not, newest last."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if _NAME.fullmatch(path.name))


def newest_step(keys: Iterable[str]) -> int:
    """The steps of the newest whole checkpoint among a stage's files; 0 without one."""
    whole = [Path(key).parent.name for key in keys if Path(key).name == CHECKPOINT_FILE]
    return max((int(name.removeprefix(_PREFIX)) for name in whole if _NAME.fullmatch(name)), default=0)


def find_checkpoint(folder: Path, key: str, most_steps: int) -> Path | None:
    """The whole checkpoint of this key with the most steps, up to `most_steps`; nothing is changed."""
    for path in reversed(checkpoint_folders(folder)):
        info = verified_checkpoint(path, key)
        if info is not None and info.step <= most_steps:
            return path
    return None


def verified_checkpoint(folder: Path, key: str) -> CheckpointInfo | None:
    """What a checkpoint says of itself, if it is in its place and every file of it is whole."""
    try:
        info = checkpoint_info(folder, key)
        check_files(folder, info.sha256)
    except DamagedFileError:
        return None
    return info


def checkpoint_info(folder: Path, key: str) -> CheckpointInfo:
    """What a checkpoint in its place says of itself, if what its state goes with is there."""
    try:
        info = CheckpointInfo.model_validate_json((folder / CHECKPOINT_FILE).read_bytes())
    except (ValueError, FileNotFoundError):
        raise DamagedFileError(folder / CHECKPOINT_FILE) from None
    if info.key != key or folder.name != checkpoint_name(info.step):
        raise DamagedFileError(folder / CHECKPOINT_FILE)
    check_files(folder.parents[1], info.beside)
    return info


def ticket_folder(run_dir: Path, stage: TrainStage) -> Path:
    return run_dir / stage.draw / TICKETS_FOLDER / stage.region


def ticket_artifacts(run_dir: Path, stage: TrainStage) -> tuple[Artifact, ...]:
    """The files that the training begins with: its ticket and the inherited weights."""
    ticket = ticket_folder(run_dir, stage)
    return tuple(artifact(run_dir, path) for path in (ticket / TICKET_FILE, ticket / EXPERT_FOLDER / WEIGHTS_FILE))


def state_key(stage: TrainStage, inputs: tuple[Artifact, ...]) -> str:
    """The key of the training's checkpoints: they belong to the very ticket that it began with."""
    return digest([stage.key, *(item.sha256 for item in inputs)])
