"""Finding and reading studies, and keeping one in its folder: the same command goes on with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ebdiff_orchestrator.plans.load import absolute, load_plan, plan_from_values, read_yaml, with_absolute_paths
from ebdiff_orchestrator.plans.preset_plans import preset_values, studies, study_folder
from ebdiff_orchestrator.run.manifests import differences
from region_workers.storage.durable import write_text
from schemas.errors import PlanError, UserError, command, from_validation_error, plan_error, similar_word
from schemas.manifest import STUDY_FILE
from schemas.plan import Plan
from schemas.study import StudyPlan, StudyRow

_ONLY_IN_PLANS = {"base", *Plan.model_fields} - StudyPlan.model_fields.keys()


def load_study(study: str | Path, changes: Sequence[str] = (), seeds: int | None = None) -> StudyPlan:
    """A study of the package, a YAML file, or the folder of one that was begun; with its plans written out.

    What it names on this machine it names by absolute paths, so that it goes on from any folder.

    `changes`: `key=value`, to every row's plan; `seeds`: that many instead of the study's.

    Raises PlanError that names each wrong field, its value, what was expected and what to do.
    """
    text, beside = _text_of(study)
    values = read_yaml(text, f"STUDY = {study}")
    if not isinstance(values, dict):
        raise PlanError(f"STUDY = {study}: expected a mapping with `rows`. See docs/studies.md for one.")
    if "rows" not in values and values.keys() & _ONLY_IN_PLANS:
        raise _is_a_plan(study)
    values = {"name": Path(study).stem, **values} | ({} if seeds is None else {"seeds": seeds})
    try:
        found = StudyPlan.model_validate(values)
    except ValidationError as error:
        raise from_validation_error(error, "study", str(study), StudyPlan) from None
    rows = tuple(_written_out(found, row, changes, beside) for row in found.rows)
    _check_workers({row.label: plan_of(row) for row in rows})
    how = found.evaluate
    if how is not None:
        how = how.model_copy(update={"inception_weights": absolute(how.inception_weights)})
    return found.model_copy(update={"rows": rows, "set": (), "evaluate": how})


def is_begun(folder: Path) -> bool:
    """Whether there is a study in a folder."""
    return (folder / STUDY_FILE).is_file()


def plan_of(row: StudyRow) -> Plan:
    """The plan of a row that is written out."""
    assert isinstance(row.plan, dict)
    return plan_from_values(row.plan, title=row.label)


def check_goes_on(study: StudyPlan, folder: Path) -> None:
    """UserError, showing what differs, if the folder holds a study that this one, which may have more, is not."""
    if not is_begun(folder):
        return
    changed = _changes(load_study(folder), study)
    if changed:
        lines = "\n".join(f"  - {line}" for line in changed)
        raise UserError(
            f"--study-dir = {folder}: holds a study that differs; expected one whose rows and seeds are all in "
            f"this one, which may have more. What differs (there -> asked for):\n{lines}\n"
            f"Give another --study-dir, or go on with the old one: {command('study', folder)}"
        )


def write_study(study: StudyPlan, folder: Path) -> None:
    """Write the study to its folder, as `load_study` reads it there."""
    values = study.model_dump(mode="json")
    write_text(folder / STUDY_FILE, yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100))


def _changes(old: StudyPlan, new: StudyPlan) -> list[str]:
    """What keeps the new study from going on with the old one, a line each."""
    gone = [str(seed) for seed in old.seeds if seed not in new.seeds]
    lines = [f"seeds: without {', '.join(gone)}"] if gone else []
    rows = {row.label: row for row in new.rows}
    for row in old.rows:
        other = rows.get(row.label)
        if other is None:
            lines.append(f"rows: without {row.label}")
            continue
        before, after = plan_of(row).experiment(), plan_of(other).experiment()
        lines += [f"{row.label}: {line}" for line in differences(before, after)]
        lines += [] if row.start == other.start else [f"{row.label}: start: {row.start} -> {other.start}"]
    return lines


def _text_of(study: str | Path) -> tuple[str, Path | None]:
    """The study's text, and the folder beside whose files its plans may be."""
    path = Path(study)
    if is_begun(path):
        path = path / STUDY_FILE
    elif path.suffix not in (".yaml", ".yml"):
        if str(study) in studies():
            return (study_folder() / f"{study}.yaml").read_text(), None
        if preset_values(str(study)) is not None:
            raise _is_a_plan(study)
        hint = similar_word(str(study), list(studies()))
        expected = f"a YAML file, a study's folder, or one of {', '.join(studies())}"
        raise PlanError(f"STUDY = {study}: expected {expected}. Check the name or the path.{hint}")
    try:
        return path.read_text(encoding="utf-8"), path.parent
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"STUDY = {study}: expected a readable UTF-8 text file ({error}). Check the path, or see `ebdiff presets`."
        ) from None


def _is_a_plan(name: str | Path) -> PlanError:
    return PlanError(f"STUDY = {name}: it is a plan; expected a study. Start it as one: {command('launch', name)}")


def _written_out(study: StudyPlan, row: StudyRow, changes: Sequence[str], beside: Path | None) -> StudyRow:
    """The row with its whole plan, every change in it; the run's name and seed are no part of it."""
    all_changes = (*study.set, *row.set, *changes)
    try:
        if isinstance(row.plan, dict):
            plan = plan_from_values(row.plan, all_changes, title=row.label)
        else:
            file = beside / row.plan if beside is not None else None
            plan = load_plan(str(file) if file is not None and file.is_file() else row.plan, all_changes)
    except PlanError as error:
        raise PlanError(f"row {row.label}: {error}") from None
    if row.start is not None and plan.model.pretrained is not None:
        remedy = "Leave one of the two out."
        raise plan_error(f"row {row.label}: model.pretrained", plan.model.pretrained, "none beside `start`", remedy)
    values: dict[str, Any] = with_absolute_paths(plan).model_dump(mode="json", exclude={"name", "seed"})
    return row.model_copy(update={"plan": values, "set": ()})


def _check_workers(plans: dict[str, Plan]) -> None:
    """PlanError unless all rows ask for the same workers, since they share them."""
    asked = {
        label: (plan.workers.cpus, str(plan.workers.gpus), plan.workers.processes) for label, plan in plans.items()
    }
    (first, expected), *others = asked.items()
    for label, workers in others:
        if workers != expected:
            text = "the same in every row, since the rows share their workers: cpus, gpus, processes as {} has them, {}"
            raise plan_error(f"row {label}: workers", workers, text.format(first, expected), "Change one row's.")
