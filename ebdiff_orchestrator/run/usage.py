"""What the command line's own parser finds wrong, told as every other mistake is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from schemas.errors import problem

_REPHRASED = {
    r"^Value error, ": "",
    r"^'[^']*' is not one of": "one of",
    r"^Input should be (greater|less)": r"a number \1",
    r"^Input should be ": "",
    r"^a valid integer.*": "a whole number",
    r"^a valid number.*": "a number",
}


def usage_problem(error: Any, typed: Sequence[str]) -> str | None:
    """What is wrong with a command line, what was expected and what to do; None if `error` is of another kind.

    `typed`: the command line. The parser's errors are told by what they have in common, since typer brings a parser of
    its own or uses click's.
    """
    if not hasattr(error, "format_message"):
        return None
    text = str(error.format_message())
    if type(error).__name__ == "NoArgsIsHelpError":
        return text
    context = getattr(error, "ctx", None)
    see = f"See `{context.command_path if context else 'ebdiff'} --help`, and correct the command."
    options = list(getattr(getattr(error, "param", None), "opts", ()))
    value = _given(options, typed)
    if value is not None:
        return "ebdiff: " + problem(options[-1], value, _expectation(str(error.message)), see)
    return f"ebdiff: {' '.join(text.split()).rstrip('.')}; expected another command line. {see}"


def _given(options: Sequence[str], typed: Sequence[str]) -> str | None:
    """The value that was typed last for an option of these names."""
    found = None
    for index, word in enumerate(typed):
        name, equals, value = word.partition("=")
        if name in options and (equals or index + 1 < len(typed)):
            found = value if equals else typed[index + 1]
    return found


def _expectation(message: str) -> str:
    """The parser's words for what a value should have been, in the words of plans."""
    for words, instead in _REPHRASED.items():
        message = re.sub(words, instead, message)
    return message.rstrip(".")
