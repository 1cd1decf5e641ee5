"""Reusing what other runs have computed: equal stages whole, shorter trainings as a start."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import JobOutline
from region_workers.storage.checkpoint_files import find_checkpoint, state_key, ticket_artifacts
from region_workers.storage.durable import write_folder, write_model
from region_workers.storage.integrity import finished_result, is_whole
from schemas.job import CHECKPOINTS_FOLDER, RESULT_FILE, DrawStage, StageResult, TrainStage

Stage = DrawStage | TrainStage


def reuse_stages(
    directory: RunDirectory, jobs: Sequence[JobOutline], runs: Sequence[str | Path], say: Callable[[str], None]
) -> dict[str, str]:
    """Copy into `directory` every stage of `jobs` that one of `runs` has finished under the same key.

    Every file is verified before and after. A training that another run has finished with fewer steps lends its last
    checkpoint, from which ours goes on to the same bits: these trainings are returned, with the runs. A stage must
    have the same name there, so the same region. UserError if one of `runs` is no run.
    """
    others = {}  # by the folder to copy from, where the run is
    for run in map(RunDirectory, runs):
        run.read()
        others[run.fetch_folder("")] = run.location
    if not others:
        return {}  # our own checkpoints are the workers' to read
    for folder in ("draw", "train"):  # an older run at this place may have left some here
        directory.files.fetch_folder(folder)
    borrowed = {}
    for job in jobs:
        for stage in (job.draw, job.train):
            if stage is None or finished_result(directory.path, stage) is not None:
                continue
            with directory.fenced():
                if any(_copy_stage(directory.path, other, stage, location) for other, location in others.items()):
                    directory.publish(stage.name)
                elif isinstance(stage, TrainStage):
                    source = _borrow_checkpoint(directory.path, tuple(others), stage, say)
                    if source is not None:
                        directory.publish(f"{stage.name}/{CHECKPOINTS_FOLDER}")
                        borrowed[stage.name] = others[source]
    return borrowed


def _copy_stage(run_dir: Path, other: Path, stage: Stage, location: str) -> bool:
    """Whether the other run has the stage, which is copied then."""
    result = finished_result(other, stage)
    if other == run_dir or result is None or not all(is_whole(other, item) for item in result.artifacts):
        return False
    if not all(Path(item.path).is_relative_to(stage.name) for item in result.artifacts):
        return False  # a stage's files are in its folder
    if not all(is_whole(run_dir, item) for item in result.inputs):
        return False  # a training belongs to the very ticket that this run has

    def copy(folder: Path) -> None:
        for item in result.artifacts:
            target = folder / Path(item.path).relative_to(stage.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(other / item.path, target)
        last = _last_checkpoint(other, stage)
        if last is not None:  # so that the stage can be extended here too
            _copy_files(last, folder / CHECKPOINTS_FOLDER / last.name)

    write_folder(run_dir / stage.name, copy)
    copied = StageResult.model_validate({**result.model_dump(), "reused_from": result.reused_from or location})
    write_model(run_dir / stage.name / RESULT_FILE, copied)
    return True


def _last_checkpoint(run: Path, stage: Stage) -> Path | None:
    if not isinstance(stage, TrainStage):
        return None
    key = state_key(stage, ticket_artifacts(run, stage))
    return find_checkpoint(run / stage.name / CHECKPOINTS_FOLDER, key, stage.steps)


def _borrow_checkpoint(
    run_dir: Path, others: Sequence[Path], stage: TrainStage, say: Callable[[str], None]
) -> Path | None:
    """The longest training of this very ticket with at most our steps: its last checkpoint. The run that it is of."""
    try:
        key = state_key(stage, ticket_artifacts(run_dir, stage))
    except FileNotFoundError:
        return None  # no ticket yet
    folders = [run / stage.name / CHECKPOINTS_FOLDER for run in (run_dir, *others)]
    found = [path for path in (find_checkpoint(folder, key, stage.steps) for folder in folders) if path is not None]
    if not found:
        return None
    best = max(found, key=lambda path: path.name)  # of equals the first, so our own
    target = folders[0] / best.name
    if best == target:
        return None
    try:
        write_folder(target, lambda folder: _copy_files(best, folder))
    except FileNotFoundError:
        return None  # the other run is at work, and has newer ones
    say(f"{stage.name}: goes on from {best}.")
    return best.parents[len(Path(stage.name).parts) + 1]


def _copy_files(source: Path, target: Path) -> None:
    """Without their modes: what is copied here is deleted here, though the other run may be kept from changes."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
