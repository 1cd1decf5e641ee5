"""A run is its directory: opening one, its manifest, its owner, and verifying what it holds."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ebdiff_orchestrator.run.ownership import LOCK, Say, check_newest, claim_run
from ebdiff_orchestrator.run.stages import ASSEMBLE
from ebdiff_orchestrator.trackers.group import WANDB_FOLDER
from region_workers.storage.checkpoint_files import newest_step
from region_workers.storage.durable import is_temporary, remove_leftovers, write_model
from region_workers.storage.integrity import read_manifest
from region_workers.storage.places import check_no_links
from region_workers.storage.run_files import RunFiles
from schemas.errors import UserError, command, user_error
from schemas.execution import PREVIEWS_FOLDER
from schemas.job import CHECKPOINTS_FOLDER, OWNERS_FOLDER, Note, is_claim
from schemas.manifest import MANIFEST_FILE, RAY_LOG, STUDY_FILE, Manifest
from schemas.process import unix_time

_SHOWN = 5


class RunDirectory:
    """The directory of one run: a path, or a `file://`, `s3://` or `gs://` URL. Only its driver writes the manifest.

    `path` is the folder to work in: the directory itself, or what stands for the URL on this machine. `given_by`: the
    claim of the driver on whose behalf it is opened, by a task of its; what that driver may not change, the task may
    not either. `owner`: that claim's name, or the one under which this driver holds the run.
    """

    def __init__(self, location: str | Path, given_by: str = "") -> None:
        self.files = RunFiles(location)
        self.path, self.location = self.files.folder, self.files.location
        self.owner = given_by
        self._changing = False

    @property
    def manifest_file(self) -> Path:
        return self.path / MANIFEST_FILE

    @property
    def short_location(self) -> str:
        """The location as one would type it here."""
        relative = self.location if self.files.is_copy else os.path.relpath(self.location)
        return relative if len(relative) < len(self.location) else self.location

    def check_in_folder(self, use: str) -> None:
        """UserError, saying what for, unless the run is in a folder, which all nodes of a cluster can share."""
        if self.files.is_copy:
            raise UserError(f"DIR = {self.location}: expected a run in a folder that all nodes share, {use}")

    def exists(self) -> bool:
        """Whether there is a run in this directory. UserError if its store does not say."""
        try:
            self.files.fetch([MANIFEST_FILE])
        except OSError as error:
            raise self.files.unusable(error) from None
        return self.manifest_file.is_file()

    def read(self) -> Manifest:
        """The manifest. UserError if the directory holds no run, or one this version cannot read."""
        if not self.exists():
            remedy = "Check the path, or launch a plan."
            if (self.path / STUDY_FILE).is_file():
                remedy = f"Name a run in it: it is a study, which `{command('study', self.location, '--table')}` shows."
            if self.path.is_file():
                remedy = "This is a file: name the folder of a run."
            raise UserError(f"DIR = {self.location}: no run here; expected a folder with a {MANIFEST_FILE}. {remedy}")
        return read_manifest(self.path)

    def write(self, manifest: Manifest) -> Manifest:
        """Write the manifest durably; returns it as written. RunTakenOverError if another driver has the run now."""
        self.files.wait_for_store(manifest.plan.workers.store_limit_s)
        stamped = manifest.model_copy(update={"updated_at": unix_time()})
        with self.fenced():
            write_model(self.manifest_file, stamped)
            self.files.publish(MANIFEST_FILE)
        return stamped

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """Each change of the run happens within it; RunTakenOverError instead if another driver has the run."""
        if self._changing or not self.owner:
            yield
            return
        with self.files.locked(LOCK):
            check_newest(self.files, self.owner)
            self._changing = True
            try:
                yield
            finally:
                self._changing = False
            check_newest(self.files, self.owner)  # a store has no lock that kept another out since the first look

    def write_note(self, key: str, *attempts: int) -> None:
        """Write a note for the workers of these attempts, or of all without a number, to the file of that key."""
        with self.fenced():
            write_model(self.path / key, Note(owner=self.owner, attempts=attempts))
            self.files.publish(key)

    def fetch(self, key: str) -> Path:
        """The path of a file, which is there as the run has it now, or not at all."""
        self.files.fetch([key])
        return self.path / key

    def fetch_folder(self, folder: str) -> Path:
        """The path of a folder, which holds what the run has there now; what only this machine has stays."""
        if self.files.is_copy:
            self.files.fetch(self.files.list_keys(folder))
        return self.path / folder

    def saved_steps(self, stage: str) -> int:
        """How many steps of a stage its newest checkpoint has; 0 without one."""
        return newest_step(self.files.list_keys(f"{stage}/{CHECKPOINTS_FOLDER}"))

    def previews(self) -> int:
        """How many previews the run has."""
        return sum(key.endswith(".json") for key in self.files.list_keys(PREVIEWS_FOLDER))

    def ensemble(self) -> Path:
        """The folder to load the ensemble from. UserError if an object store's run has none yet."""
        if self.files.is_copy:  # a folder may be an ensemble without a run
            artifacts = self.read().stage(ASSEMBLE).artifacts
            if not artifacts:
                raise UserError(
                    f"DIR = {self.location}: has no ensemble yet; expected a finished run. "
                    f"Go on with it: {command('resume', self.location)}"
                )
            self.files.fetch_recorded(artifacts)
        return self.path

    def publish(self, folder: str) -> None:
        """The folder's files are whole: let everybody see them."""
        with self.fenced():
            self.files.publish(folder)

    def discard(self, key: str) -> None:
        with self.fenced():
            self.files.discard(key)

    @contextmanager
    def held(self, say: Say, take_over: bool = False) -> Iterator[None]:
        """Hold the run, so that no second driver works on it. UserError if another one does, unless `take_over`.

        UserError also for symbolic links in it, since what is written, deleted and verified must lie inside, and for a
        place that is no run and holds somebody else's files.
        """
        check_no_links(self.path, but_in=WANDB_FOLDER)
        if not self.exists():
            _check_nothing_foreign(self.location, self.files.outline())
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            ownership = claim_run(self.files, take_over=take_over, say=say)
        except OSError as error:
            raise self.files.unusable(error) from None
        self.owner = ownership.name
        try:
            with self.fenced():
                remove_leftovers(self.path)  # of an earlier driver; the stages' folders are their workers'
            yield
        finally:
            refused = not self.manifest_file.is_file()  # nothing of it stays
            ownership.release(leaves_nothing=refused)
            self.owner = ""
            if refused:
                with suppress(OSError):  # somebody else's files are in one of them
                    for folder in missing:
                        folder.rmdir()

    @contextmanager
    def discarded_if_refused(self) -> Iterator[None]:
        """Within it, a UserError before anything of the run has begun leaves no run behind."""
        try:
            yield
        except UserError:
            if not self.read().begun():
                self.discard(RAY_LOG)
                self.discard(MANIFEST_FILE)  # last: without it nobody would know what the rest is
            raise


def _check_nothing_foreign(where: str, names: Iterable[str]) -> None:
    """UserError for a place that is no run yet and holds somebody's files, which a run might write over or delete.

    `names`: down to the second level. What a launch that was killed at its start has left is no obstacle; where a claim
    is among them there was a run, which has lost its manifest, and the rest is its own.
    """
    names = list(names)
    if STUDY_FILE in names:
        raise user_error("DIR", where, "a folder for a run alone, but a study is there", "Give another --run-dir.")
    if any(is_claim(name.removeprefix(f"{OWNERS_FOLDER}/")) for name in names if name.startswith(OWNERS_FOLDER)):
        return
    foreign = sorted({_top(name) for name in names if not _is_ours(name)})
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise UserError(
            f"DIR = {where}: expected a run, or an empty folder for a new one, but it holds "
            f"{', '.join(foreign[:_SHOWN])}{more}, and no run. Give another --run-dir, or move these away."
        )


def _top(name: str) -> str:
    return name if name.startswith(f"{OWNERS_FOLDER}/") else name.split("/")[0]


def _is_ours(name: str) -> bool:
    top, _, below = name.partition("/")
    if top == OWNERS_FOLDER:
        return below in ("", ".lock") or is_claim(below) or is_temporary(below)
    return name == RAY_LOG or is_temporary(top)
