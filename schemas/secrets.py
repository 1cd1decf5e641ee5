"""Keys inside URLs, as in s3://KEY:SECRET@bucket: refused where they are given, and never shown."""

from __future__ import annotations

import re

# What stands before the @ is a key if it comes before the first slash, or has a colon there: a secret may hold slashes.
_SCHEME = r"(?P<scheme>(?:s3|gs|gcs):/+|(?!file:)\b[A-Za-z][A-Za-z0-9+.-]*://)"
_SECRET = re.compile(_SCHEME + r"(?!anonymous@)(?:[^/\s@]*@|[^/\s@:]+:[^\s@]*@)")


def holds_secret(text: str) -> bool:
    """Whether there is a URL with a key in it."""
    return _SECRET.search(text) is not None


def without_secrets(text: str) -> str:
    """The text with dots in place of the keys in its URLs."""
    return _SECRET.sub(r"\g<scheme>...@", text)
