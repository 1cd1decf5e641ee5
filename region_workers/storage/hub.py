"""Folders of models on the Hugging Face hub: downloaded once, then read as any folder."""

import re
from collections.abc import Sequence
from pathlib import Path

_STATUS = re.compile(r"\d{3} \w+ Error\b")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class HubError(Exception):
    """The hub has no such folder for us, and nobody downloaded it before; the message says why, in a line."""


def is_hub_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def download(
    name: str, patterns: Sequence[str], revision: str | None = None, without: Sequence[str] | None = None
) -> Path:
    """The folder of what the hub's model `name` has under these patterns, but for those of `without`.

    `revision`: a branch, a tag or a commit. Nothing that was downloaded is run. Raises HubError.
    """
    from huggingface_hub import snapshot_download

    wanted, unwanted = list(patterns), None if without is None else list(without)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))
    except Exception as error:  # the hub's client raises of everything; each means the same to the user
        raise HubError(hub_reason(error)) from error


def hub_reason(error: Exception) -> str:
    """What the hub's client says, in a line; the first may be but the status."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not _STATUS.match(line)), lines[0] if lines else type(error).__name__)
