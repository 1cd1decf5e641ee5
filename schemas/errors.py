"""The errors a user can act on: each says the field, the value, what was expected and what to do, and no secret."""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import PydanticCustomError

Kind = Literal["plan", "study"]
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_WRITING = (errno.EROFS, errno.EACCES, errno.EPERM)
_MOST_LINES, _MOST_CHARACTERS, _MOST_BITS = 20, 120, 400
_WHOLE, _NUMBER, _FLAG = "a whole number", "a number", "true or false"
_EXPECTED = {  # where pydantic's own words speak of Python
    **dict.fromkeys(["int_type", "int_parsing", "int_from_float", "int_parsing_size"], _WHOLE),
    **dict.fromkeys(["float_type", "float_parsing"], _NUMBER),
    **dict.fromkeys(["bool_type", "bool_parsing"], _FLAG),
    **dict.fromkeys(["model_type", "model_attributes_type", "dict_type"], "a section of keys and values"),
    **dict.fromkeys(["tuple_type", "list_type"], "a list"),
    "string_type": "text",
    "finite_number": "a finite number",
    "string_pattern_mismatch": "a name of the letters a to z, A to Z, digits, and . _ - but for a dot at its beginning",
}
_REPHRASED = {
    "Input should be greater": "a number greater",
    "Input should be less": "a number less",
    "Input should be ": "",
    "String should have": "text of",
    "Tuple should have": "a list of",
    " after validation": "",
}
_SIMILAR = 0.6
# What stands before the @ is a key if it comes before the first slash, or has a colon there: a secret may hold slashes.
_SCHEME = r"(?P<scheme>(?:s3|gs|gcs):/+|(?!file:)\b[A-Za-z][A-Za-z0-9+.-]*://)"
_SECRET = re.compile(_SCHEME + r"(?!anonymous@)(?:[^/\s@]*@|[^/\s@:]+:[^\s@]*@)")
_JOINED = re.compile(r"\b(s3|gs|gcs|https?):/(?=[^/\s])")  # as Path writes a URL


class UserError(ValueError):
    """Something its user can put right; shown without a traceback, exit code 2. No key in a URL gets into it."""

    def __init__(self, message: str) -> None:
        super().__init__(_JOINED.sub(r"\1://", without_secrets(message)))


class PlanError(UserError):
    """A plan that cannot run as written."""


class RunFailed(RuntimeError):  # noqa: N818 - it names an outcome
    """A run that started and could not finish; exit code 1."""


class RunStopped(RuntimeError):  # noqa: N818 - it names an outcome
    """The run was interrupted; everything needed to go on is saved. Exit code 130."""


def disk_problem(error: OSError) -> str | None:
    """For people, if the disk is full or may not be written: which place, and what to do; None for other errors."""
    if error.errno in NO_SPACE:
        return f"{error}: the disk is full, or over its quota. Free some space there; what was saved is whole."
    if error.errno in NO_WRITING:
        return f"{error}: it cannot be written. Give the run's user the right to; what was saved is whole."
    return None


def command(name: str, place: str | Path, *options: str) -> str:
    """The command `ebdiff NAME PLACE` as one pastes it into a shell, whatever letters the place has."""
    operand = f"./{place}" if str(place).startswith("-") else str(place)
    return shlex.join(["ebdiff", name, operand, *options])


def problem(field: str, value: object, expected: str, remedy: str) -> str:
    """One problem as a line for people."""
    return f"{field} = {value}: expected {expected}. {remedy}"


def user_error(field: str, value: object, expected: str, remedy: str) -> UserError:
    return UserError(problem(field, value, expected, remedy))


def plan_error(field: str, value: object, expected: str, remedy: str) -> PlanError:
    return PlanError(problem(field, as_in_yaml(value), expected, remedy))


def cross_field_error(field: str, value: object, expected: str, remedy: str) -> PydanticCustomError:
    """The error that a pydantic validator raises for a rule over several fields."""
    from pydantic_core import PydanticCustomError

    return PydanticCustomError(
        "plan",
        "{problem}",
        {"problem": problem(field, as_in_yaml(value), expected, remedy).replace("{", "(").replace("}", ")")},
    )


def from_validation_error(error: ValidationError, of: Kind, title: str, model: type[BaseModel]) -> PlanError:
    """Every problem of a pydantic error, a line each, as one `PlanError`; `model` is what was validated."""
    items: dict[str, list[dict[str, Any]]] = {}
    errors = error.errors(include_url=False)
    for number, item in enumerate(errors):
        if item["type"] == "too_short" and any(_is_in(other["loc"], item["loc"]) for other in errors):
            continue  # pydantic counts the items that are right
        rule = f" {number}" if item["type"] == "plan" else ""  # rules over several fields stand alone
        items.setdefault(_field(item["loc"]) + rule, []).append(dict(item))
    lines = [_line(group, of, model) for group in items.values()]
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    listed = "\n".join(f"  - {line}" for line in [*lines[:_MOST_LINES], *more])
    return PlanError(f"The {of} {title} cannot run as written:\n{listed}")


def as_in_yaml(value: object) -> object:
    """The value, but in place of None, True and False the words that YAML has for them."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else value


def shown(value: object) -> str:
    """A value as a plan's author writes it, cut to a readable length."""
    value = as_in_yaml(value)
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a number of {value.bit_length()} bits"
    text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in str(value))
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def _is_in(inner: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _line(items: list[dict[str, Any]], of: Kind, model: type[BaseModel]) -> str:
    """One field's problem; several items are what each of its types (a number, or a word) has to say."""
    item = items[0]
    field, kind = _field(item["loc"]), item["type"]
    if kind == "plan":
        _, *place = field.split(".")[:2]  # a region does not know its place
        return re.sub(r"^regions\.(?=train |name )", ".".join(["regions", *place, ""]), str(item["msg"]))
    if kind == "extra_forbidden":
        return _unknown_key(field, item, of, model)
    if kind == "missing":
        add = f"Add it to the plan or give --set {field}=..." if of == "plan" else "Add it to the study's file."
        return f"{field} is missing: expected a value. {add}"
    if kind == "invalid_key":
        return problem(field, "...", "a key that is text", "Check the indentation, or quote the key.")
    if kind == "union_tag_invalid":
        tag, tags = str(item["ctx"]["tag"]), str(item["ctx"]["expected_tags"])
        return problem(f"{field}.family", tag, tags.replace(", ", " or "), "Change it." + _similar(tag, tags))
    expected = " or ".join(dict.fromkeys(_expectation(each) for each in items))
    remedy = f"Change it in the plan or with --set {field}=..." if of == "plan" else "Change it in the study's file."
    if kind == "string_type" and item["input"] is not None:
        quote = "Quote what YAML would read as something else"
        remedy = f"{quote}: --set '{field}=\"...\"'." if of == "plan" else f"{quote}."
    guess = _similar(str(item["input"]), str(item["ctx"]["expected"])) if kind == "literal_error" else ""
    return problem(field, shown(item["input"]), expected, remedy + guess + _as_share(item))


def _unknown_key(field: str, item: dict[str, Any], of: Kind, model: type[BaseModel]) -> str:
    meant = " or ".join(meant_keys(model, item["loc"]))
    remedy = f"Did you mean {meant}?" if meant else "Check the spelling."
    if of == "study":
        return problem(field, shown(item["input"]), "a key that studies have", f"{remedy} See docs/studies.md.")
    see = "docs/plan.md lists every key, and `ebdiff plan digits --yaml` those in use."
    return problem(field, shown(item["input"]), "a key that plans have", f"{remedy} {see}")


def _field(location: tuple[int | str, ...]) -> str:
    """As it is written in a plan: without the kinds that pydantic tried a value as."""
    if location[:1] == ("model",) and location[1:2] in (("pixel",), ("latent",), ("vector",)):
        location = ("model", *location[2:])
    if location[:2] == ("workers", "gpus"):
        location = location[:2]
    return ".".join(str(part) for part in location) or "plan"


def _expectation(item: dict[str, Any]) -> str:
    text = _EXPECTED.get(str(item["type"]), str(item["msg"]))
    for words, instead in _REPHRASED.items():
        text = text.replace(words, instead)
    return text


def _as_share(item: dict[str, Any]) -> str:
    """A hint for who wrote a percentage where a share up to 1 is meant."""
    percent = re.fullmatch(r"(\d+(?:\.\d+)?)( ?%)?", shown(item["input"]))
    bounds = item.get("ctx", {})
    if percent is None or not (percent[2] or (float(percent[1]) > 1 in (bounds.get("lt"), bounds.get("le")))):
        return ""
    return f" {percent[1]}% is {float(percent[1]) / 100:g}."


def _similar(word: str, quoted: str) -> str:
    return similar_word(word, re.findall(r"'([^']*)'", quoted))


def meant_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """What the unknown key at `location` may have been meant to be: dotted keys, the likeliest first; often none.

    A similar key of the same section, else the same key in other sections.
    """
    *parents, key = location
    sections = [model]
    path: list[str] = []
    for part in parents:
        tagged = [section for section in sections if _has_tag(section, part)]
        if tagged:  # pydantic names the kind that it took a section for
            sections = tagged
            continue
        path.append(str(part))
        if isinstance(part, str):
            sections = [found for section in sections for found in _sections_of(section, part)]
    siblings = list(dict.fromkeys(name for section in sections for name in section.model_fields))
    similar = get_close_matches(str(key), siblings, n=1, cutoff=_SIMILAR)
    if similar:
        return [".".join([*path, similar[0]])]
    return [found for found in dict.fromkeys(_all_keys(model)) if found.rpartition(".")[2] == key]


def similar_word(word: str, words: list[str]) -> str:
    """` Did you mean X?` if one of `words` is like `word`, else nothing."""
    similar = get_close_matches(word, words, n=1, cutoff=_SIMILAR)
    return f" Did you mean {similar[0]}?" if similar else ""


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        index = "0." if "tuple" in str(field.annotation) else ""
        for section in _sections_of(model, name):
            yield from _all_keys(section, f"{prefix}{name}.{index}")


def _sections_of(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    field = model.model_fields.get(name)
    return [] if field is None else list(_sections_in(field.annotation))


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)


def _has_tag(section: type[BaseModel], part: int | str) -> bool:
    family = section.model_fields.get("family")
    return family is not None and get_args(family.annotation) == (part,)


def holds_secret(text: str) -> bool:
    """Whether there is a URL with a key in it."""
    return _SECRET.search(text) is not None


def without_secrets(text: str) -> str:
    """The text with dots in place of the keys in its URLs."""
    return _SECRET.sub(r"\g<scheme>...@", text)
