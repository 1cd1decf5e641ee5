"""What an image store says of itself: its content's digest, its shape, where it came from."""

from __future__ import annotations

from typing import Any, Literal

from schemas.section import Section


class StoreInfo(Section):
    """The `store.json` beside a store's pixels."""

    format: Literal[1] = 1
    key: str  # digest of the source's identity and of the transform
    digest: str  # SHA-256 of the uint8 pixels in order, then of the shape as text
    shape: tuple[int, int, int, int]  # images, height, width, channels
    pixels_bytes: int  # size of pixels.npy, header included
    unreadable_names: tuple[str, ...]  # what was left out, as file names or row numbers
    source: dict[str, Any]  # the identity that the key was made of, less the files one by one
