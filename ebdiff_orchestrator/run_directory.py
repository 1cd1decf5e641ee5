"""A run is its directory: opening one, its manifest, its lock, and verifying what it holds."""

from __future__ import annotations

import fcntl
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from ebdiff_orchestrator.stages import stage_names
from region_workers.checkpoints import newest_step
from region_workers.results import is_whole
from schemas.durable import write_model
from schemas.errors import PlanError, UserError, plan_error
from schemas.job import CHECKPOINTS_FOLDER, Artifact
from schemas.manifest import MANIFEST_FILE, Manifest, StageRecord, read_manifest
from schemas.plan import Plan

_SOFTWARE = ("ebdiff-orchestrator", "torch", "diffusers", "torch-pruning", "ray", "numpy", "safetensors")
_LOCK_FILE = ".driver-lock"
_STEPS = re.compile(r"(training|regions\.\d+)\.steps: ")


class RunDirectory:
    """The directory of one run. Only its driver writes the manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    @property
    def manifest_file(self) -> Path:
        """Where the manifest is, or will be."""
        return self.path / MANIFEST_FILE

    def exists(self) -> bool:
        """Whether there is a run in this directory."""
        return self.manifest_file.is_file()

    def read(self) -> Manifest:
        """The manifest. UserError if the directory holds no run, or one this version cannot read."""
        if not self.exists():
            raise UserError(f"DIR = {self.path}: no run here (no {MANIFEST_FILE}). Check the path, or launch a plan.")
        return read_manifest(self.path)

    def write(self, manifest: Manifest) -> Manifest:
        """Write the manifest durably; returns it as written."""
        stamped = manifest.model_copy(update={"updated_at": time.time()})
        write_model(self.manifest_file, stamped)
        return stamped

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
            raise PlanError(f"ebdiff extend changes nothing but training.steps and regions.N.steps, not:\n{lines}")
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
    def held(self) -> Iterator[None]:
        """Hold the run, so that no second driver works on it. UserError if another one does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK_FILE).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"DIR = {self.path}: another launch or resume is working on this run. "
                    f"Watch it with `ebdiff status {self.path} --watch`, or give another --run-dir."
                ) from None
            yield

    @contextmanager
    def discarded_if_refused(self) -> Iterator[None]:
        """Within it, a UserError before anything of the run has begun leaves no run behind."""
        try:
            yield
        except UserError:
            if not self.read().begun():
                self.manifest_file.unlink()
                (self.path / _LOCK_FILE).unlink(missing_ok=True)
                with suppress(OSError):  # somebody else's files are in it
                    self.path.rmdir()
            raise

    def damaged(self, artifacts: tuple[Artifact, ...]) -> list[str]:
        """The artifacts that are missing or whose bytes are not those recorded."""
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
        f"DIR = {path}: holds a run of a different experiment. What differs (there -> asked for):\n{lines}\n"
        f"Give another --run-dir for the new experiment, or go on with the old one: ebdiff resume {path}"
    )


def _new_manifest(plan: Plan) -> Manifest:
    now = time.time()
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
