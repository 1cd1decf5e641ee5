"""What an image store says of itself: its content's digest, its shape, where it came from."""

from __future__ import annotations

from typing import Any, Literal

from schemas.section import Section


class StoreInfo(Section):
    """The `store.json` beside a store's pixels."""

    format: Literal[1] = 1
    key: str  # digest of the source's identity and of the transform
    digest: str  # SHA-256 of the uint8 pixels in order, of the shape as text, then of the int64 labels if there are any
    shape: tuple[int, int, int, int]  # images, height, width, channels
    pixels_bytes: int  # size of pixels.npy, header included
    unreadable_names: tuple[str, ...]  # what was left out, as file names or row numbers
    num_classes: int | None = None  # null: no labels; else labels.npy holds an int64 below it for each image
    class_names: tuple[str, ...] | None = None  # null: the classes are numbers without names
    source: dict[str, Any]  # the identity that the key was made of, less the files one by one
