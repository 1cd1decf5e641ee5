"""Digests and seeds: SHA-256 of named parts, equal on every machine and in every process."""

import hashlib
import json
from typing import Any

_SEEDS = 1 << 63


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-like value, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def seed_from(*stream: str | int, index: int = 0) -> int:
    """The 63-bit seed of entry `index` of a stream, a pure function of both (DESIGN, invariant 3).

    A stream is known by its named parts, all bits of which count. Its entries are counted on from a hash, not hashed
    themselves: torch's CPU generator takes only the low 32 bits of a seed, in which 2^32 entries so differ all.
    """
    text = "\x1f".join(str(part) for part in stream)
    start = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return (start + index) % _SEEDS
