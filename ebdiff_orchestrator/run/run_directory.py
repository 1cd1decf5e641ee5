"""A run is its directory: opening one, its manifest, its owner, and verifying what it holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ebdiff_orchestrator.run.claims import Claims, FolderClaims, StoredClaims
from ebdiff_orchestrator.run.foreign_files import check_nothing_foreign
from ebdiff_orchestrator.run.mirror import Mirror, NoMirror, StoreMirror
from ebdiff_orchestrator.run.ownership import Ownership, Say, check_newest, claim_run
from ebdiff_orchestrator.run.stages import ASSEMBLE
from region_workers.storage.durable import remove_leftovers, write_model
from region_workers.storage.integrity import is_whole
from region_workers.storage.manifest_file import read_manifest
from region_workers.storage.places import check_no_links
from schemas.clock import unix_time
from schemas.digest import digest
from schemas.errors import UserError
from schemas.job import FAILURE_FILE, PROGRESS_FILE, RESULT_FILE, STOP_FILE, Artifact, Note
from schemas.location import default_cache_dir, folder_of, object_url
from schemas.manifest import MANIFEST_FILE, RAY_LOG, Manifest

if TYPE_CHECKING:
    from region_workers.storage.object_store import ObjectStore

_MIRRORS_FOLDER = "runs"


class RunDirectory:
    """The directory of one run: a path, or a `file://`, `s3://` or `gs://` URL. Only its driver writes the manifest.

    `path` is the folder to work in: the directory itself, or what stands for the URL on this machine. `given_by`: the
    claim of the driver on whose behalf it is opened, by a task of its; what that driver may not change, the task may
    not either.
    """

    def __init__(self, location: str | Path, given_by: str = "") -> None:
        url = object_url(location)
        self._ownership: Ownership | None = None
        self._given_by = given_by
        self._store: ObjectStore | None = None
        self._mirror: Mirror = NoMirror()
        self._claims: Claims
        self._changing = False
        if url is None:
            self.path = folder_of(location)
            self.location = str(self.path)
            self._claims = FolderClaims(self.path)
            return
        self.path = default_cache_dir() / _MIRRORS_FOLDER / digest(url)[:16]
        self.location = url
        from region_workers.storage.object_store import ObjectStore  # pyarrow, for which a run in a folder has no use

        self._store = store = ObjectStore(url)
        self._mirror, self._claims = StoreMirror(store, self.path), StoredClaims(store)

    @property
    def is_mirrored(self) -> bool:
        """Whether the run is in an object store."""
        return not isinstance(self._mirror, NoMirror)

    @property
    def manifest_file(self) -> Path:
        """Where the manifest is, or will be."""
        return self.path / MANIFEST_FILE

    def exists(self) -> bool:
        """Whether there is a run in this directory. UserError if its store does not say."""
        try:
            self._mirror.fetch([MANIFEST_FILE])
        except OSError as error:
            raise self._unusable(error) from None
        return self.manifest_file.is_file()

    def read(self) -> Manifest:
        """The manifest. UserError if the directory holds no run, or one this version cannot read."""
        if not self.exists():
            raise UserError(
                f"DIR = {self.location}: no run here; expected a folder with a {MANIFEST_FILE}. "
                "Check the path, or launch a plan."
            )
        return read_manifest(self.path)

    def write(self, manifest: Manifest) -> Manifest:
        """Write the manifest durably; returns it as written. RunTakenOverError if another driver has the run now."""
        self._mirror.be_patient(manifest.plan.workers.store_limit_s)
        stamped = manifest.model_copy(update={"updated_at": unix_time()})
        with self.fenced():
            write_model(self.manifest_file, stamped)
            self._mirror.publish(MANIFEST_FILE)
        if self.is_mirrored:
            self.check_owner()  # a store has no lock that keeps another out between look and write
        return stamped

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """What changes the run goes in here: RunTakenOverError, and no change, if another driver has the run now."""
        if self._changing or not self.owner:
            yield
            return
        with self._claims.locked():
            self.check_owner()
            self._changing = True
            try:
                yield
            finally:
                self._changing = False

    def write_note(self, key: str, attempt: int) -> None:
        """Leave a word for the workers of an attempt, in the file of that key; 0: for all of this driver's."""
        with self.fenced():
            write_model(self.path / key, Note(owner=self.owner, attempt=attempt))
            self._mirror.publish(key)

    def refresh(self, stages: Sequence[str]) -> None:
        """See what the workers of these stages say of themselves."""
        said = (PROGRESS_FILE, FAILURE_FILE, RESULT_FILE)
        self._mirror.fetch([f"{stage}/{name}" for stage in stages for name in said])

    def fetch_stages(self, stages: Sequence[str]) -> None:
        """Have the recorded files of these stages in `path`."""
        if self.is_mirrored:
            manifest = self.read()
            self._mirror.fetch_artifacts([item for name in stages for item in manifest.stage(name).artifacts])

    def ensemble(self) -> Path:
        """The folder to load the ensemble from. UserError if an object store's run has none yet."""
        if self.is_mirrored:
            artifacts = self.read().stage(ASSEMBLE).artifacts
            if not artifacts:
                raise UserError(
                    f"DIR = {self.location}: has no ensemble yet; expected a finished run. "
                    f"Go on with it: ebdiff resume {self.location}"
                )
            self._mirror.fetch_artifacts(artifacts)
        return self.path

    def fetch_folder(self, folder: str) -> None:
        """Have the files of a folder in `path`."""
        self._mirror.fetch_folder(folder)

    def publish(self, folder: str) -> None:
        """The folder's files are whole: let everybody see them."""
        with self.fenced():
            self._mirror.publish(folder)

    def discard(self, key: str) -> None:
        """Delete a file of the run, or a folder."""
        place = self.path / key
        with self.fenced():
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
            self._mirror.discard(key)

    def discard_copy(self) -> None:
        """Delete what stands for a run in an object store on this machine."""
        if self.is_mirrored:
            shutil.rmtree(self.path, ignore_errors=True)

    def ask_to_stop(self) -> None:
        """Ask this driver's workers to save and stop."""
        self.write_note(STOP_FILE, 0)

    @property
    def owner(self) -> str:
        """The name of this driver's claim, while it holds the run."""
        return self._ownership.name if self._ownership else self._given_by

    def check_owner(self) -> None:
        """Raise RunTakenOverError if this driver held the run and another has it now."""
        if self.owner:
            check_newest(self._claims, self.owner, self.location)

    @contextmanager
    def held(self, take_over: bool = False, say: Say = print) -> Iterator[None]:
        """Hold the run, so that no second driver works on it. UserError if another one does, unless `take_over`.

        UserError also for symbolic links in it, since what is written, deleted and verified must lie inside, and for a
        place that is no run and holds somebody else's files.
        """
        check_no_links(self.path)
        if not self.exists():
            check_nothing_foreign(self.location, self._names())
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self._ownership = claim_run(self._claims, self.location, take_over=take_over, say=say)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            with self.fenced():
                remove_leftovers(self.path)  # of an earlier driver; the stages' folders are their workers'
            yield
        finally:
            refused = not self.manifest_file.is_file()  # nothing of it stays
            self._ownership.release(leaves_nothing=refused)
            self._ownership = None
            if refused:
                with suppress(OSError):  # somebody else's files are in one of them
                    for folder in missing:
                        folder.rmdir()

    def _names(self) -> list[str]:
        """What is there, down to the second level."""
        if self._store is not None:
            return sorted({"/".join(key.split("/")[:2]) for key in self._store.list_keys()})
        paths = [*self.path.glob("*"), *self.path.glob("*/*")]
        return sorted(path.relative_to(self.path).as_posix() for path in paths)

    def _unusable(self, error: OSError) -> UserError:
        """For people: why nothing can be written there."""
        if self.is_mirrored:
            return UserError(
                f"DIR = {self.location}: expected a store that answers, and a bucket that exists ({error}). "
                "Check the credentials and the endpoint (AWS_ENDPOINT_URL), or give a folder."
            )
        return UserError(
            f"DIR = {self.location}: expected a folder that can be written ({error.strerror or error}). "
            "Give another --run-dir, or make it writable."
        )

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

    def damaged(self, artifacts: tuple[Artifact, ...]) -> list[str]:
        """The artifacts that are missing or whose bytes are not those recorded."""
        self._mirror.fetch_artifacts(artifacts)
        return [item.path for item in artifacts if not is_whole(self.path, item)]
