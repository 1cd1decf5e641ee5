"""Finding and reading plans: presets by name, YAML files, and `key=value` changes to them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ebdiff_orchestrator.plans.preset_plans import merged, methods, preset_values, presets, studies
from schemas.errors import PlanError, command, from_validation_error, plan_error, shown, similar_word
from schemas.manifest import STUDY_FILE
from schemas.plan import Plan
from schemas.section import Section

_MOST_CHARACTERS = 1_000_000
_MOST_VALUES = 100_000
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+|^\.+")


def load_plan(plan: str, changes: Sequence[str] = ()) -> Plan:
    """The plan of a preset's name or a YAML file, with `key=value` changes (dotted keys, YAML values).

    A YAML file may name another plan as its `base` and hold only what differs: sections merge, lists are replaced.

    Raises PlanError that names each wrong field, its value, what was expected and what to do.
    """
    return plan_from_values(_read(plan), changes, title=plan)


def plan_from_values(values: dict[str, Any], changes: Sequence[str] = (), title: str = "plan") -> Plan:
    """`load_plan` for values at hand, which stay as they are."""
    values = _unshared(values)
    if any(change.startswith("regions.") for change in changes):
        values.setdefault("regions", Plan().model_dump(mode="json")["regions"])
    for change in changes:
        _apply(values, change)
    try:
        plan = Plan.model_validate(values)
    except ValidationError as error:
        raise from_validation_error(error, "plan", title, Plan) from None
    _check_flags(values, plan, "")
    return plan


def preset_plan(name: str) -> Plan | None:
    """The plan of a preset, also with methods, whatever file or folder is named so; None if there is none."""
    try:
        values = preset_values(name)
    except PlanError:  # a run's name may be of methods that could be joined when it began
        return None
    return None if values is None else plan_from_values(values, title=name)


def step_notes(plan: Plan, changes: Sequence[str]) -> list[str]:
    """For people: the regions that a change of training.steps does not reach, since they have steps of their own."""
    changed = {change.partition("=")[0] for change in changes}
    if "training.steps" not in changed or "regions" in changed:
        return []
    keys = {f"regions.{index}.steps": region.steps for index, region in enumerate(plan.regions) if region.steps}
    return [
        f"{key} = {steps}, the region's own, stays: training.steps = {plan.training.steps} is for those without. "
        f"Change it too with --set {key}=..."
        for key, steps in keys.items()
        if key not in changed
    ]


def plan_as_yaml(plan: Plan) -> str:
    """The whole plan, defaults included, as YAML that `load_plan` reads."""
    return yaml.safe_dump(_every_field(plan), sort_keys=False, default_flow_style=None, width=100)


def with_absolute_paths(plan: Plan) -> Plan:
    """Local paths of the plan made absolute, since workers have another current directory."""
    data = plan.data.model_copy(update={"path": absolute(plan.data.path)})
    changed = {name: absolute(getattr(plan.model, name, None)) for name in ("pretrained", "vae")}
    model = plan.model.model_copy(update={name: path for name, path in changed.items() if path is not None})
    return plan.model_copy(update={"data": data, "model": model})


def absolute(path: str | None) -> str | None:
    """The absolute path of what is on this machine; what is not, a name on the hub perhaps, as it is."""
    if path is None or not Path(path).expanduser().exists():
        return path
    return str(Path(path).expanduser().resolve())


def _every_field(value: Any) -> Any:
    """As plain values, with the fields that files and digests leave out while they have their default."""
    if isinstance(value, Section):
        return {name: _every_field(getattr(value, name)) for name in type(value).model_fields}
    return [_every_field(item) for item in value] if isinstance(value, tuple) else value


def _check_flags(given: Any, taken: Any, field: str) -> None:
    """PlanError for a true or false, as YAML also reads yes, no, on and off, that was taken as 1 or 0."""
    if isinstance(given, dict) and isinstance(taken, Section):
        for name, value in given.items():
            _check_flags(value, getattr(taken, name), f"{field}.{name}".lstrip("."))
    elif isinstance(given, list) and isinstance(taken, tuple):
        for index, (value, part) in enumerate(zip(given, taken, strict=False)):
            _check_flags(value, part, f"{field}.{index}")
    elif isinstance(given, bool) and not isinstance(taken, bool):
        raise plan_error(field, given, "a number", "Give one, or null for none where the field allows it.")


def _unshared(value: Any) -> Any:
    """A copy in which no two places are one object, as a YAML anchor and its aliases are: a change is of one place."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _read(plan: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = Path(plan)
    if path.is_dir() and preset_values(plan) is None:  # data often lie in a folder of the preset's name
        if (path / STUDY_FILE).is_file():
            raise _is_a_study(plan)
        raise PlanError(
            f"PLAN = {plan}: a folder; expected a YAML file or a preset ({', '.join(presets())}). "
            "Name the file in it, or a preset."
        )
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        return _preset(plan)
    values = read_yaml(_text_of(path), f"PLAN = {plan}")
    if not isinstance(values, dict):
        raise PlanError(
            f"PLAN = {plan}: expected a mapping of keys to values. See `ebdiff plan digits --yaml` for one."
        )
    if "rows" in values:
        raise _is_a_study(plan)
    return _with_base(values, path, above)


def _preset(name: str) -> dict[str, Any]:
    values = preset_values(name)
    if values is None and name in studies():
        raise _is_a_study(name)
    if values is None:
        known = [*presets(), *(f"{preset}-{method}" for preset in presets() for method in methods())]
        raise PlanError(
            f"PLAN = {name}: expected a file, or a preset ({', '.join(presets())}), also with a method, as in "
            f"cifar10-eb ({', '.join(methods())}). Check the name or the path.{similar_word(name, known)}"
        )
    return values


def _is_a_study(name: str) -> PlanError:
    return PlanError(f"PLAN = {name}: it is a study; expected a plan. Start it as one: {command('study', name)}")


def _with_base(values: dict[str, Any], path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The plan over its `base`: a preset, or a file named relative to the plan's own."""
    base = values.pop("base", None)
    if base is None:
        return values
    above = (*above, path.resolve())
    if not isinstance(base, str) or (path.parent / base).resolve() in above:
        raise PlanError(f"base = {shown(base)}: expected a preset or another YAML file. Change it in {path}.")
    beside = path.parent / base
    try:
        below = _read(str(beside) if beside.is_file() else base, above)
    except PlanError as error:
        raise PlanError(f"base = {base}, in {path}: {error}") from None
    name = _NO_NAME.sub("-", path.stem)  # it names a folder too
    return merged(below, {"name": name, **values})


def _text_of(path: Path) -> str:
    if not path.exists():
        raise PlanError(
            f"PLAN = {path}: no such file; expected a YAML file or a preset ({', '.join(presets())}). Check the path."
        )
    try:
        if not path.is_file():
            raise OSError("it is no regular file")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"PLAN = {path}: expected a readable UTF-8 text file ({error}). Check the file, or save it anew as UTF-8."
        ) from None


def _apply(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise PlanError(f"--set {shown(change)}: expected key=value. Write it as in --set training.steps=2000.")
    if " #" in f" {text}" and not text.startswith(("'", '"', "[", "{")):
        raise PlanError(
            f"--set {shown(change)}: expected no # after a blank, where YAML begins a comment. "
            f"Quote the value: --set '{key}=\"...\"'."
        )
    value = read_yaml(text, f"--set {shown(change)}")
    if isinstance(value, str) and _is_exponent_number(value):
        value = float(value)  # YAML 1.1 reads 2e-4 as text
    *parents, last = key.split(".")
    target: Any = values
    for index, part in enumerate(parents):
        if isinstance(target, dict) and target.get(part) is None:
            target[part] = {}
        target = target[_position(target, part, change)]
        if not isinstance(target, dict | list):
            path = ".".join(parents[: index + 1])
            raise PlanError(
                f"--set {shown(change)}: {path} is a single value; expected a section there. Check the key."
            )
    target[_position(target, last, change)] = value


def _position(target: dict[str, Any] | list[Any], part: str, change: str) -> str | int:
    if isinstance(target, dict):
        return part
    if not part.isdecimal() or int(part) >= len(target):
        raise PlanError(
            f"--set {shown(change)}: expected a position from 0 to {len(target) - 1} in place of {part}. Change it."
        )
    return int(part)


def _is_exponent_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "e" in text.lower()


def read_yaml(text: str, what: str) -> Any:
    """The value of a YAML text. PlanError, beginning with `what`, for one that is none or that unfolds without bound.

    No tag makes an object of it: values are those of JSON, and dates.
    """
    if len(text) > _MOST_CHARACTERS:
        expected = f"expected at most {_MOST_CHARACTERS:,}"
        raise PlanError(f"{what}: {len(text):,} characters; {expected}. Give a smaller file.")
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise PlanError(f"{what}: expected valid YAML. Correct it: {error}") from None
    except ValueError as error:  # a date or a number that there is not
        raise PlanError(f"{what}: expected values that can be read ({error}). Correct or quote the value.") from None
    except RecursionError:
        raise PlanError(f"{what}: expected sections a few levels deep. Remove the brackets within brackets.") from None


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is a mistake, not a silent loss of the first; anchors are counted."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _unfolded(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]} stands twice; merge its sections", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _unfolded(node: yaml.Node, counted: dict[int, int | None]) -> int:
    """How many values the node stands for, aliases unfolded; ConstructorError if they are too many or without end."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    known = counted.get(id(node), 0)
    if known is None:
        raise yaml.constructor.ConstructorError(None, None, "an anchor that contains itself", node.start_mark)
    if known:
        return known
    counted[id(node)] = None
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    total = 1 + sum(_unfolded(part, counted) for part in parts)
    if total > _MOST_VALUES:
        reason = f"its anchors unfold to more than {_MOST_VALUES:,} values"
        raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
    counted[id(node)] = total
    return total
