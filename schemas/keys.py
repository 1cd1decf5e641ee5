"""The keys of a plan as it is written: which there are in a section, and which one a misspelt key was meant to be."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel

_SIMILAR = 0.6


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
