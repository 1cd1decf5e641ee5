"""The manifest of a new run, of one that goes on, and of one that gets more steps, where the plan may be so changed."""

import platform
import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ebdiff_orchestrator.run.stages import stage_names, with_what_follows
from schemas.errors import PlanError, UserError, as_in_yaml, command, plan_error
from schemas.manifest import Manifest, StageRecord
from schemas.plan import Plan
from schemas.process import unix_time
from schemas.regions import RegionPlan
from schemas.stage_names import train_stage_name

_SOFTWARE = ("ebdiff-orchestrator", "torch", "diffusers", "torch-pruning", "ray", "numpy", "safetensors")
_STEPS = re.compile(r"(training|regions\.\d+)\.steps: ")


def new_manifest(plan: Plan) -> Manifest:
    """The manifest of a run in which nothing has been done."""
    now = unix_time()
    return Manifest(
        created_at=now,
        updated_at=now,
        plan=plan,
        experiment_digest=plan.experiment_digest(),
        software=versions_of(_SOFTWARE),
        stages={name: StageRecord(name=name) for name in stage_names(plan)},
    )


def continued(manifest: Manifest, plan: Plan, run_dir: Path) -> Manifest:
    """That of a run which goes on with this plan: workers, checkpointing and logging may differ, and take effect.

    UserError, showing what differs, if the plan is of another experiment.
    """
    if manifest.plan.experiment_digest() != plan.experiment_digest():
        raise UserError(_refusal(run_dir, manifest, plan))
    return manifest.model_copy(update={"plan": plan, "software": versions_of(_SOFTWARE)})


def extended(manifest: Manifest, plan: Plan, saved_steps: Callable[[str], int]) -> Manifest:
    """That of a run whose plan has more steps now: trainings too short for it and what is made of them are open again.

    PlanError if the plan differs in anything else, or asks for fewer steps than a training has made: `saved_steps` says
    how many of a stage are in its checkpoints.
    """
    changed = [line for line in differences(manifest.plan.experiment(), plan.experiment()) if not _STEPS.match(line)]
    if changed:
        lines = "\n".join(f"  - {line}" for line in changed)
        raise PlanError(
            "--set: expected a change of training.steps or regions.N.steps, all that ebdiff extend changes, not:\n"
            f"{lines}\nLeave it out, or launch a new run."
        )
    opened = []
    for region in plan.regions:
        record = manifest.stage(train_stage_name(region))
        made = max(record.steps, saved_steps(record.name))
        if plan.steps_of(region) < made:
            field, expected = f"steps of region {region.name}", f"at least the {made} that are made"
            raise plan_error(field, plan.steps_of(region), expected, "Raise it, or start a new run.")
        if plan.steps_of(region) != record.steps:
            opened.append(record.name)
    stages = dict(manifest.stages)
    for name in with_what_follows(plan, opened):
        stages[name] = manifest.stage(name).model_copy(update={"status": "pending"})
    update = {"plan": plan, "experiment_digest": plan.experiment_digest(), "stages": stages}
    return manifest.model_copy(update=update)


def begun_anew(before: Plan, plan: Plan) -> tuple[str, ...]:
    """The trainings that a plan with other steps begins anew, since the moves of their masks depend on how many."""

    def determinants(region: RegionPlan, of: Plan) -> dict[str, Any] | None:
        sparsity = of.sparsity_of(region)
        return None if sparsity is None else sparsity.determinants(of.steps_of(region))

    pairs = zip(before.regions, plan.regions, strict=True)
    return tuple(train_stage_name(new) for old, new in pairs if determinants(old, before) != determinants(new, plan))


def differing(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """The fields in which two plans, or experiments, differ: each with what it is in the old one and in the new."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(key, old.get(key), new.get(key)) for key in [*old, *(key for key in new if key not in old)]]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(index, a, b) for index, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [(path, old, new)]
    return [field for key, a, b in pairs for field in differing(a, b, f"{path}.{key}" if path else str(key))]


def differences(old: Any, new: Any) -> list[str]:
    """What differs between two experiments, a line each: `field: old -> new`."""
    return [f"{field}: {as_in_yaml(a)} -> {as_in_yaml(b)}" for field, a, b in differing(old, new)]


def _refusal(path: Path, manifest: Manifest, new: Plan) -> str:
    """For people: the run in `path` is of another experiment, and in what."""
    changed = differences(manifest.plan.experiment(), new.experiment())
    lines = "\n".join(f"  - {line}" for line in changed)
    lines += _extend_hint(path, changed)
    old = "the old one is finished" if manifest.finished() else f"to go on with the old one: {command('resume', path)}"
    return (
        f"DIR = {path}: holds a run of a different experiment; expected one of this plan. "
        f"What differs (there -> asked for):\n{lines}\n"
        f"Give another --run-dir for the new experiment; {old}"
    )


def _extend_hint(path: Path, changed: list[str]) -> str:
    """How to train further, where that is all that differs."""
    steps = [re.fullmatch(r"(\S+): (\d+|null) -> (\d+)", line) for line in changed]
    known = [found for found in steps if found and _STEPS.match(found[0])]
    if len(known) < len(changed) or any(int(found[3]) <= int(found[2].replace("null", "0")) for found in known):
        return ""
    sets = [word for found in known for word in ("--set", f"{found[1]}={found[3]}")]
    return f"\nTo train its experts further: {command('extend', path, *sets)}"


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """What is installed of Python and these packages."""
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
