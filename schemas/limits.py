"""Bounds of what plans may ask for, as plain numbers: the decoding process starts without pydantic."""

from __future__ import annotations

MAX_PIXELS = 64_000_000  # of one image, by default: 8,000 x 8,000; in memory four bytes each, and a copy or two
MOST_PIXELS = 178_956_970  # where Pillow itself refuses
