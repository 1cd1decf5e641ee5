"""What names tell of a data set: the files below a folder, of which split and class each is, and whether they changed.

Names are strings and not paths: of a million files the paths alone would take minutes and most of a gigabyte.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from region_workers.storage.integrity import bytes_digest
from schemas.errors import plan_error
from schemas.plan import DataPlan

FOLDER_LABEL = "label"  # the name that the datasets library gives to the folders of a folder of images

TABLE_SUFFIX = ".parquet"
LINES, SVG, ZIP = ".ndjson", ".svg", ".zip"  # of drawings
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"}
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# The words by which the datasets library tells the splits of a folder apart.
_SPLIT_OF_WORD = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["test", "testing", "eval", "evaluation"], "test"),
    **dict.fromkeys(["validation", "valid", "val", "dev"], "validation"),
}


def visible_files(root: Path) -> list[str]:
    """Every file below `root`, links followed, sorted by name; neither hidden ones nor those in hidden folders."""
    # None of the user's images: macOS leaves "._name.jpg" beside them, caches their own folders.
    return sorted(_visible(str(root), ""))


def written_name(name: str) -> str:
    """A file's name as text that can be written: bytes that are no UTF-8, as old archives have, as in caf\\xe9.png."""
    return name if name.isascii() else name.encode(errors="surrogateescape").decode(errors="backslashreplace")


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
            remedy = f"{written_name(name)} lies in none: move it, or set data.label_column to null."
            raise plan_error("data.label_column", label_column, "every image in the folder of its class", remedy)
        classes.append(sys.intern(written_name(folder)))
    return classes


def files_identity(path: Path, folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """What changes when files of a source may have changed; `names` are relative to `folder`.

    Sizes and times of change stand for the content: hashing it would read the whole data set on every start.
    """
    digest = bytes_digest(f"{_entry(folder, name)}\n".encode() for name in names)
    return {"path": written_name(str(path.resolve())), "files": len(names), "files_digest": digest}


def _visible(folder: str, prefix: str, around: tuple[str, ...] = ()) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in around:  # a link to a folder that it lies in, which would have no end
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _visible(entry.path, f"{prefix}{entry.name}/", (*around, real))
            elif entry.is_file():
                yield prefix + entry.name


def _entry(root: Path, name: str) -> str:
    status = os.stat(f"{root}/{name}")  # noqa: PTH116 - a Path for each costs more than the call
    return f"[{json.dumps(name)}, {status.st_size}, {status.st_mtime_ns}]"  # a third of the time of the list's dump


def files_of_split(root: Path, names: list[str], plan: DataPlan) -> list[str]:
    """The files of `plan.split`: those whose folder or name begins with a word for it (train/, test-0.parquet).

    `names` are relative to `root`.

    A folder that names fewer than two splits is not split, and all of it is `train`: one that is called train may
    hold trains. Raises PlanError if the split is not there.
    """
    split_of_name = [_split_of(name) for name in names]
    splits = sorted({split for split in split_of_name if split})
    if len(splits) < 2:
        check_not_split(plan)
        return names
    wanted = _SPLIT_OF_WORD.get(plan.split)
    if wanted not in splits:
        remedy = f"These are what {root} holds: choose one of them."
        raise plan_error("data.split", plan.split, f"one of {', '.join(splits)}", remedy)
    return [name for name, split in zip(names, split_of_name, strict=True) if split == wanted]


def check_not_split(plan: DataPlan) -> None:
    """Raise PlanError if the plan asks for a part of local data that has none."""
    if plan.split != "train":
        remedy = f"{plan.path} is not divided into splits: leave data.split out."
        raise plan_error("data.split", plan.split, "train, which means all of it", remedy)


def without_split_folder(names: Sequence[str]) -> Sequence[str]:
    """Names within a split: without the folder at the top that names it (train/), if all of them lie in such folders.

    Tells the folders of classes from the folder of a split.
    """
    in_split = all("/" in name and _split_of(name) for name in names)
    return [name.partition("/")[2] for name in names] if in_split else names


def _split_of(name: str) -> str | None:
    folder, slash, _ = name.partition("/")
    word = folder if slash else re.split(r"[-_.\d]", name, maxsplit=1)[0]
    return _SPLIT_OF_WORD.get(word.lower())
