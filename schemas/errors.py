"""The errors a user can act on: each says the field, the value, what was expected and what to do."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import PydanticCustomError


class UserError(ValueError):
    """Something its user can put right; shown without a traceback, exit code 2."""


class PlanError(UserError):
    """A plan that cannot run as written."""


class RunFailed(RuntimeError):  # noqa: N818 - it names an outcome
    """A run that started and could not finish; exit code 1."""


def problem(field: str, value: object, expected: str, remedy: str) -> str:
    """One problem as a line for people."""
    return f"{field} = {value}: expected {expected}. {remedy}"


def plan_error(field: str, value: object, expected: str, remedy: str) -> PlanError:
    """A `PlanError` with one problem."""
    return PlanError(problem(field, value, expected, remedy))


def cross_field_error(field: str, value: object, expected: str, remedy: str) -> PydanticCustomError:
    """The error that a pydantic validator raises for a rule over several fields."""
    return PydanticCustomError(
        "plan",
        "{problem}",
        {"problem": problem(field, value, expected, remedy).replace("{", "(").replace("}", ")")},
    )


def from_validation_error(error: ValidationError, title: str) -> PlanError:
    """Every problem of a pydantic error, a line each, as one `PlanError`."""
    lines = [_line(dict(item)) for item in error.errors(include_url=False)]
    return PlanError(f"{title}:\n" + "\n".join(f"  - {line}" for line in lines))


def _line(item: dict[str, object]) -> str:
    if item["type"] == "plan":
        return str(item["msg"])
    location = item["loc"]
    assert isinstance(location, tuple)
    if location[:1] == ("model",) and location[1:2] in (("pixel",), ("latent",)):
        location = ("model", *location[2:])  # pydantic names the kind of model that it took the section for
    field = ".".join(str(part) for part in location) or "plan"
    if item["type"] == "extra_forbidden":
        return problem(
            field,
            item["input"],
            "a key that plans have",
            "Check the spelling; `ebdiff plan digits --yaml` prints every key.",
        )
    if item["type"] == "missing":
        return f"{field} is missing: a value is required. Add it to the plan or give --set {field}=..."
    return f"{field} = {item['input']!r}: {item['msg']}. Change it in the plan or with --set {field}=..."
