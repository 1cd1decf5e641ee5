"""YAML of a plan: strict about keys that stand twice, and bounded, whatever its anchors unfold to."""

from __future__ import annotations

from typing import Any

import yaml

from schemas.errors import PlanError

_MOST_CHARACTERS = 1_000_000
_MOST_VALUES = 100_000


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
