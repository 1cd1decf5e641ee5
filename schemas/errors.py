"""The errors a user can act on: each says the field, the value, what was expected and what to do."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Any

from schemas.keys import meant_keys, similar_word
from schemas.secrets import without_secrets

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import PydanticCustomError

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
}
_REPHRASED = {
    "Input should be greater": "a number greater",
    "Input should be less": "a number less",
    "Input should be ": "",
    "String should have": "text of",
    "String should match pattern": "text to match pattern",
    "Tuple should have": "a list of",
}


class UserError(ValueError):
    """Something its user can put right; shown without a traceback, exit code 2. No key in a URL gets into it."""

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


class PlanError(UserError):
    """A plan that cannot run as written."""


class RunFailed(RuntimeError):  # noqa: N818 - it names an outcome
    """A run that started and could not finish; exit code 1."""


def disk_problem(error: OSError) -> str | None:
    """For people, if the disk is full or may not be written: which place, and what to do; None for other errors."""
    if error.errno in NO_SPACE:
        return f"{error}: the disk is full, or over its quota. Free some space there; what was saved is whole."
    if error.errno in NO_WRITING:
        return f"{error}: it cannot be written. Give the run's user the right to; what was saved is whole."
    return None


def problem(field: str, value: object, expected: str, remedy: str) -> str:
    """One problem as a line for people."""
    return f"{field} = {value}: expected {expected}. {remedy}"


def plan_error(field: str, value: object, expected: str, remedy: str) -> PlanError:
    """A `PlanError` with one problem."""
    return PlanError(problem(field, value, expected, remedy))


def cross_field_error(field: str, value: object, expected: str, remedy: str) -> PydanticCustomError:
    """The error that a pydantic validator raises for a rule over several fields."""
    from pydantic_core import PydanticCustomError

    return PydanticCustomError(
        "plan",
        "{problem}",
        {"problem": problem(field, value, expected, remedy).replace("{", "(").replace("}", ")")},
    )


def from_validation_error(error: ValidationError, title: str, model: type[BaseModel]) -> PlanError:
    """Every problem of a pydantic error, a line each, as one `PlanError`; `model` is what was validated."""
    items: dict[str, list[dict[str, Any]]] = {}
    for number, item in enumerate(error.errors(include_url=False)):
        rule = f" {number}" if item["type"] == "plan" else ""  # rules over several fields stand alone
        items.setdefault(_field(item["loc"]) + rule, []).append(dict(item))
    lines = [_line(group, model) for group in items.values()]
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return PlanError(f"{title}:\n" + "\n".join(f"  - {line}" for line in [*lines[:_MOST_LINES], *more]))


def shown(value: object) -> str:
    """A value as a plan's author writes it, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a number of {value.bit_length()} bits"
    text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in str(value))
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def _line(items: list[dict[str, Any]], model: type[BaseModel]) -> str:
    """One field's problem; several items are what each of its types (a number, or a word) has to say."""
    item = items[0]
    field, kind = _field(item["loc"]), item["type"]
    if kind == "plan":
        _, *place = field.split(".")[:2]  # a region does not know its place
        return re.sub(r"^regions\.(?=train |name )", ".".join(["regions", *place, ""]), str(item["msg"]))
    if kind == "extra_forbidden":
        return _unknown_key(field, item, model)
    if kind == "missing":
        return f"{field} is missing: expected a value. Add it to the plan or give --set {field}=..."
    if kind == "invalid_key":
        return problem(field, "...", "a key that is text", "Check the indentation, or quote the key.")
    if kind == "union_tag_invalid":
        tag, tags = str(item["ctx"]["tag"]), str(item["ctx"]["expected_tags"])
        return problem(f"{field}.family", tag, tags.replace(", ", " or "), "Change it." + _similar(tag, tags))
    expected = " or ".join(dict.fromkeys(_expectation(each) for each in items))
    remedy = f"Change it in the plan or with --set {field}=..."
    guess = _similar(str(item["input"]), str(item["ctx"]["expected"])) if kind == "literal_error" else ""
    return problem(field, shown(item["input"]), expected, remedy + guess)


def _unknown_key(field: str, item: dict[str, Any], model: type[BaseModel]) -> str:
    meant = " or ".join(meant_keys(model, item["loc"]))
    remedy = f"Did you mean {meant}?" if meant else "Check the spelling."
    see = "`ebdiff plan digits --yaml` prints every key."
    return problem(field, shown(item["input"]), "a key that plans have", f"{remedy} {see}")


def _field(location: tuple[int | str, ...]) -> str:
    """As it is written in a plan: without the kinds that pydantic tried a value as."""
    if location[:1] == ("model",) and location[1:2] in (("pixel",), ("latent",)):
        location = ("model", *location[2:])
    if location[:2] == ("workers", "gpus"):
        location = location[:2]
    return ".".join(str(part) for part in location) or "plan"


def _expectation(item: dict[str, Any]) -> str:
    text = _EXPECTED.get(str(item["type"]), str(item["msg"]))
    for words, instead in _REPHRASED.items():
        text = text.replace(words, instead)
    return text


def _similar(word: str, quoted: str) -> str:
    return similar_word(word, re.findall(r"'([^']*)'", quoted))
