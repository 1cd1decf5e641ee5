"""Write docs/plan.md, every field of a plan, from the descriptions, defaults and bounds that the schemas hold.

python docs/plan_reference.py
"""

import json
from pathlib import Path
from typing import Any

from schemas.plan import Plan

PAGE = Path(__file__).with_name("plan.md")
_HEAD = """# The fields of a plan

Written by `python docs/plan_reference.py` from the schemas; a field without a default here may be left out too, unless
it says required. `ebdiff plan PLAN --yaml` prints a whole plan, defaults included; `--set training.steps=1000` changes
one field.
"""
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


def page() -> str:
    """The page: a section of the plan after the other, then what they are made of."""
    schema = Plan.model_json_schema()
    definitions = schema.pop("$defs")
    top = {name: value for name, value in schema["properties"].items() if not _sections(value)}
    parts = [_HEAD, "## Of the plan itself\n", _table({"properties": top}, schema)]
    seen: list[str] = []
    for name, value in schema["properties"].items():
        for section in _sections(value):
            parts += _section(name, section, definitions, seen)
    return "\n".join(parts)


def _section(path: str, name: str, definitions: dict[str, Any], seen: list[str]) -> list[str]:
    """The table of a section, and those of the sections in it that have not come yet."""
    if name in seen:
        return []
    seen.append(name)
    section = definitions[name]
    family = section["properties"].get("family", {}).get("const")
    title = f"{path} (family: {family})" if family else path
    parts = [f"\n## {title}\n", " ".join(section.get("description", "").split()), "", _table(section, section)]
    for field, value in section["properties"].items():
        for inner in _sections(value):
            parts += _section(f"{path}.{field}", inner, definitions, seen)
    return parts


def _table(section: dict[str, Any], owner: dict[str, Any]) -> str:
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, value in section["properties"].items():
        default = "required" if name in owner.get("required", ()) else _code(value.get("default"))
        if _sections(value) and default != "required" and value.get("default") is not None:
            default = "see below"
        rows.append(f"| `{name}` | {_kind(value)} | {default} | {value.get('description', '')} |")
    return "\n".join(rows)


def _sections(value: dict[str, Any]) -> list[str]:
    """The sections that a field's type names, its own or its entries'."""
    if "$ref" in value:
        return [value["$ref"].rsplit("/", 1)[1]]
    inner = [*value.get("anyOf", ()), *value.get("oneOf", ())]
    inner += [value["items"]] if isinstance(value.get("items"), dict) else []
    return [name for each in inner for name in _sections(each)]


def _kind(value: dict[str, Any]) -> str:
    """A field's type in words, with its bounds."""
    if choices := [*value.get("anyOf", ()), *value.get("oneOf", ())]:
        return ", or ".join(dict.fromkeys(_kind(each) for each in choices))
    if "enum" in value or "const" in value:
        return ", ".join(_code(each) for each in value.get("enum", [value.get("const")]))
    if "$ref" in value:
        return "a section"
    if value.get("type") == "array":
        items = value.get("items", {})
        return "list of sections" if _sections(value) else f"list of {_kind(items)}" if items else "list"
    bounds = [f"{sign} {value[key]:g}" for key, sign in _BOUNDS.items() if key in value]
    return " ".join([value.get("type", "any"), *([f"({', '.join(bounds)})"] if bounds else [])])


def _code(value: Any) -> str:
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    main()
