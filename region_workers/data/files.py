"""What names tell of a data set: the files below a folder, of which class each is, and whether they changed.

Names are strings and not paths: of a million files the paths alone would take minutes and most of a gigabyte.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from region_workers.data.splits import without_split_folder
from schemas.errors import plan_error

FOLDER_LABEL = "label"  # the name that the datasets library gives to the folders of a folder of images

TABLE_SUFFIX = ".parquet"
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"}
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HASHED_AT_ONCE = 1000


def visible_files(root: Path) -> list[str]:
    """Every file below `root`, sorted by name; neither hidden ones nor those in hidden folders."""
    # None of the user's images: macOS leaves "._name.jpg" beside them, caches their own folders.
    return sorted(_visible(str(root), ""))


def names_hub_data(path: str) -> bool:
    """Whether a `data.path` that is not on this machine may be the name of a data set on the hub."""
    return bool(_HUB_NAME.fullmatch(path)) and Path(path).suffix.lower() not in {TABLE_SUFFIX, *IMAGE_SUFFIXES}


def class_folders(root: Path, names: Sequence[str], label_column: str) -> list[str]:
    """The class of each file: its folder at the top, below a split's own folder. Raises PlanError if it has none."""
    if label_column != FOLDER_LABEL:
        remedy = "The folders at its top are the classes. Set it so."
        raise plan_error("data.label_column", label_column, f"{FOLDER_LABEL} for the folder of images {root}", remedy)
    classes = []
    for name, inside in zip(names, without_split_folder(names), strict=True):
        folder, slash, _ = inside.partition("/")
        if not slash:
            remedy = f"{name} lies in none: move it, or set data.label_column to null."
            raise plan_error("data.label_column", label_column, "every image in the folder of its class", remedy)
        classes.append(sys.intern(folder))
    return classes


def files_digest(root: Path, names: Sequence[str]) -> str:
    """SHA-256 (hex) of the files' names, sizes and times of change: `digest` of the list of these, in steps.

    They stand for the content: hashing it would read the whole data set on every start.
    """
    sha = hashlib.sha256(b"[")
    for start in range(0, len(names), _HASHED_AT_ONCE):
        entries = [_entry(root, name) for name in names[start : start + _HASHED_AT_ONCE]]
        sha.update((b"," if start else b"") + json.dumps(entries, separators=(",", ":"))[1:-1].encode())
    sha.update(b"]")
    return sha.hexdigest()


def _visible(folder: str, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _visible(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file():
                yield prefix + entry.name


def _entry(root: Path, name: str) -> list[str | int]:
    status = os.stat(f"{root}/{name}")  # noqa: PTH116 - a Path for each costs more than the call
    return [name, status.st_size, status.st_mtime_ns]
