"""A run is its directory: opening one, its manifest, its owner, and verifying what it holds."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from ebdiff_orchestrator.mirror import Mirror, NoMirror, StoreMirror
from ebdiff_orchestrator.ownership import Claims, FolderClaims, Ownership, Say, StoredClaims, claim_run
from ebdiff_orchestrator.stages import ASSEMBLE, stage_names
from region_workers.checkpoint_folders import newest_step
from schemas.clock import unix_time
from schemas.digest import digest
from schemas.durable import remove_leftovers, write_model, write_text
from schemas.errors import PlanError, UserError, plan_error
from schemas.integrity import is_whole
from schemas.job import CHECKPOINTS_FOLDER, FAILURE_FILE, PROGRESS_FILE, RESULT_FILE, STOP_FILE, Artifact
from schemas.location import default_cache_dir, folder_of, object_url
from schemas.manifest import MANIFEST_FILE, Manifest, StageRecord, read_manifest
from schemas.owner import OWNERS_FOLDER
from schemas.places import check_no_links
from schemas.plan import Plan

_SOFTWARE = ("ebdiff-orchestrator", "torch", "diffusers", "torch-pruning", "ray", "numpy", "safetensors")
_MIRRORS_FOLDER = "runs"
_STEPS = re.compile(r"(training|regions\.\d+)\.steps: ")


class RunDirectory:
    """The directory of one run: a path, or a `file://`, `s3://` or `gs://` URL. Only its driver writes the manifest.

    `path` is the folder to work in: the directory itself, or what stands for the URL on this machine.
    """

    def __init__(self, location: str | Path) -> None:
        url = object_url(location)
        self._ownership: Ownership | None = None
        self._mirror: Mirror = NoMirror()
        self._claims: Claims
        if url is None:
            self.path = folder_of(location)
            self.location = str(self.path)
            self._claims = FolderClaims(self.path)
            return
        self.path = default_cache_dir() / _MIRRORS_FOLDER / digest(url)[:16]
        self.location = url
        from region_workers.object_store import ObjectStore  # pyarrow, for which a run in a folder has no use

        store = ObjectStore(url)
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
        self.check_owner()
        stamped = manifest.model_copy(update={"updated_at": unix_time()})
        write_model(self.manifest_file, stamped)
        self._mirror.publish(MANIFEST_FILE)
        return stamped

    def write_note(self, key: str, text: str) -> None:
        """Leave a word for the workers, in the file of that key."""
        write_text(self.path / key, text)
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
        self._mirror.publish(folder)

    def discard(self, key: str) -> None:
        """Delete a file of the run, or a folder."""
        place = self.path / key
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        self._mirror.discard(key)

    def discard_copy(self) -> None:
        """Delete what stands for a run in an object store on this machine."""
        if self.is_mirrored:
            shutil.rmtree(self.path, ignore_errors=True)

    def ask_to_stop(self, stop: bool) -> None:
        """Ask the workers to save and stop, or no longer."""
        if stop:
            self.write_note(STOP_FILE, "")
        else:
            self.discard(STOP_FILE)

    @property
    def owner(self) -> str:
        """The name of this driver's claim, while it holds the run."""
        return self._ownership.name if self._ownership else ""

    def check_owner(self) -> None:
        """Raise RunTakenOverError if this driver held the run and another has it now."""
        if self._ownership is not None:
            self._ownership.check()

    def begin(self, plan: Plan) -> Manifest:
        """The manifest of this plan's run: a new one, or the one at hand if it is of the same experiment.

        Workers, checkpointing and logging may differ, and take effect. A run in which no job has begun yet gives way.
        UserError, showing what differs, otherwise.
        """
        if not self.exists() or not self.read().begun():
            return self.write(_new_manifest(plan))
        manifest = self.read()
        if manifest.plan.experiment_digest() != plan.experiment_digest():
            raise UserError(_refusal(self.path, manifest.plan, plan))
        return self.write(manifest.model_copy(update={"plan": plan, "software": _software()}))

    def extend(self, plan: Plan) -> Manifest:
        """Give the run its plan with more steps; trainings that are now too short are open again.

        PlanError if the plan differs in anything else, or asks for fewer steps than a training has made.
        """
        manifest = self.read()
        changed = [
            line for line in differences(manifest.plan.experiment(), plan.experiment()) if not _STEPS.match(line)
        ]
        if changed:
            lines = "\n".join(f"  - {line}" for line in changed)
            raise PlanError(
                "--set: expected a change of training.steps or regions.N.steps, all that ebdiff extend changes, not:\n"
                f"{lines}\nLeave it out, or launch a new run."
            )
        stages = dict(manifest.stages)
        for region in plan.regions:
            record = manifest.stage(f"train/{region.name}")
            made = max(record.steps, newest_step(self.path / record.name / CHECKPOINTS_FOLDER))
            if plan.steps_of(region) < made:
                raise plan_error(
                    f"steps of region {region.name}",
                    plan.steps_of(region),
                    f"at least the {made} that are made",
                    "Raise it, or start a new run.",
                )
            if plan.steps_of(region) != record.steps:
                stages[record.name] = record.model_copy(update={"status": "pending"})
        update = {"plan": plan, "experiment_digest": plan.experiment_digest(), "stages": stages}
        return self.write(manifest.model_copy(update=update))

    @contextmanager
    def held(self, take_over: bool = False, say: Say = print) -> Iterator[None]:
        """Hold the run, so that no second driver works on it. UserError if another one does, unless `take_over`.

        UserError also for symbolic links in it: what is written, deleted and verified must lie inside.
        """
        check_no_links(self.path)
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self._ownership = claim_run(self._claims, self.location, take_over=take_over, say=say)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            remove_leftovers(self.path)  # of an earlier driver; the stages' folders are their workers'
            yield
        finally:
            self._ownership.release()
            self._ownership = None
            if not self.manifest_file.is_file():  # it was refused: nothing of it stays
                self.discard(OWNERS_FOLDER)
                with suppress(OSError):  # somebody else's files are in one of them
                    for folder in missing:
                        folder.rmdir()

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
                self.discard(MANIFEST_FILE)
            raise

    def damaged(self, artifacts: tuple[Artifact, ...]) -> list[str]:
        """The artifacts that are missing or whose bytes are not those recorded."""
        self._mirror.fetch_artifacts(artifacts)
        return [item.path for item in artifacts if not is_whole(self.path, item)]


def _extend_hint(path: Path, changed: list[str]) -> str:
    """How to train further, where that is all that differs."""
    steps = [re.fullmatch(r"(\S+): (\d+|None) -> (\d+)", line) for line in changed]
    known = [found for found in steps if found and _STEPS.match(found[0])]
    if len(known) < len(changed) or any(int(found[3]) <= int(found[2].replace("None", "0")) for found in known):
        return ""
    sets = " ".join(f"--set {found[1]}={found[3]}" for found in known)
    return f"\nTo train its experts further: ebdiff extend {path} {sets}"


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The fields in which two experiments differ, a line each: `field: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for index, (a, b) in pairs for line in differences(a, b, f"{path}.{index}")]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def _refusal(path: Path, old: Plan, new: Plan) -> str:
    changed = differences(old.experiment(), new.experiment())
    lines = "\n".join(f"  - {line}" for line in changed)
    lines += _extend_hint(path, changed)
    return (
        f"DIR = {path}: holds a run of a different experiment; expected one of this plan. "
        f"What differs (there -> asked for):\n{lines}\n"
        f"Give another --run-dir for the new experiment, or go on with the old one: ebdiff resume {path}"
    )


def _new_manifest(plan: Plan) -> Manifest:
    now = unix_time()
    return Manifest(
        created_at=now,
        updated_at=now,
        plan=plan,
        experiment_digest=plan.experiment_digest(),
        software=_software(),
        stages={name: StageRecord(name=name) for name in stage_names(plan)},
    )


def _software() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in _SOFTWARE}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
