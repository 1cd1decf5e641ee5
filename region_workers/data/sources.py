"""What `data.path` may name: the digits, a Parquet file, a folder of Parquet files or of images, a hub data set."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from region_workers.data.decode import Item
from region_workers.data.files import (
    FOLDER_LABEL,
    IMAGE_SUFFIXES,
    LINES,
    SVG,
    TABLE_SUFFIX,
    ZIP,
    check_not_split,
    class_folders,
    files_identity,
    files_of_split,
    names_hub_data,
    visible_files,
    written_name,
)
from region_workers.data.hub import HubSource
from region_workers.data.parquet import ParquetSource
from region_workers.storage.integrity import bytes_digest
from region_workers.storage.places import nothing_at
from schemas.errors import plan_error
from schemas.plan import DIGITS, DataPlan

_EXPECTED = f"a Parquet file, a folder of Parquet files or of images, a data set's name on the hub, or {DIGITS}"

_DRAWINGS = "It holds drawings: add a section data.drawings, and set model.family to vector."


class Source(Protocol):
    """Image files in a fixed order, with their labels where the plan asks for them."""

    def identity(self) -> dict[str, Any]:
        """What changes when the images may have changed, as JSON values."""

    def count(self) -> int | None:
        """The number of images, readable or not; None if only reading them tells."""

    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of their numbers, if the source knows them before it is read."""

    def items(self, start: int = 0) -> Iterator[Item]:
        """Every image from number `start` on, readable or not; with labels if the plan names a column of them."""


def open_source(plan: DataPlan, cache_dir: Path) -> Source:
    """The source that `plan.path` names; a relative path is relative to the current directory. Raises PlanError."""
    path = Path(plan.path).expanduser()
    if plan.path == DIGITS or path.exists():
        return _local_source(path, plan)
    if names_hub_data(plan.path):
        return HubSource(plan, cache_dir)
    raise plan_error("data.path", plan.path, _EXPECTED, nothing_at(plan.path))


class DigitsSource:
    """scikit-learn's 1,797 greyscale digits, 8 x 8 pixels; needs neither files nor a network."""

    def __init__(self, label_column: str | None = None) -> None:
        if label_column not in (None, FOLDER_LABEL):
            raise plan_error("data.label_column", label_column, f"{FOLDER_LABEL} for {DIGITS}", "Set it so.")
        self._images, labels = _digits()
        self._labels = labels if label_column else None

    def identity(self) -> dict[str, Any]:
        return {"kind": "digits", "digest": bytes_digest([self._images.tobytes()])}

    def count(self) -> int:
        return len(self._images)

    def class_names(self) -> tuple[str, ...] | None:
        return tuple(str(digit) for digit in range(10)) if self._labels else None

    def items(self, start: int = 0) -> Iterator[Item]:
        height, width = self._images.shape[1:]
        header = f"P5 {width} {height} 255\n".encode()  # PGM, the plainest of image files
        for row in range(start, len(self._images)):
            file = header + self._images[row].tobytes()
            yield Item(f"row {row}", file, self._labels[row] if self._labels else None)


@cache
def _digits() -> tuple[np.ndarray, list[int]]:
    """uint8 [1797, 8, 8] and what each shows; scikit-learn reads them from a text."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    values = digits.images  # float64, 0 to 16
    return np.rint(values * 255 / 16).astype(np.uint8), [int(label) for label in digits.target]


class FolderSource:
    """Image files below a folder, in the order of their relative paths; the folders at its top are the classes."""

    def __init__(self, root: Path, names: list[str], label_column: str | None = None) -> None:
        self._root, self._names = root, names
        self._classes = None if label_column is None else class_folders(root, names, label_column)

    def identity(self) -> dict[str, Any]:
        return {"kind": "folder", **files_identity(self._root, self._root, self._names)}

    def count(self) -> int:
        return len(self._names)

    def class_names(self) -> tuple[str, ...] | None:
        return None if self._classes is None else tuple(sorted(set(self._classes)))

    def items(self, start: int = 0) -> Iterator[Item]:
        for number in range(start, len(self._names)):
            label = None if self._classes is None else self._classes[number]
            name = self._names[number]
            yield Item(written_name(name), f"{self._root}/{name}", label)


def _local_source(path: Path, plan: DataPlan) -> Source:
    if plan.config_name is not None:
        remedy = "Only data sets on the hub have configurations: leave it out."
        raise plan_error("data.config_name", plan.config_name, f"null for {plan.path}", remedy)
    if plan.path != DIGITS and path.is_dir():
        return _folder_source(path, plan)
    check_not_split(plan)
    if plan.path == DIGITS:
        _check_no_column(plan)
        return DigitsSource(plan.label_column)
    return _file_source(path, plan)


def _file_source(path: Path, plan: DataPlan) -> Source:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise plan_error("data.path", plan.path, _EXPECTED, "This is one image: give the folder that holds it.")
    if path.suffix.lower() in (LINES, SVG, ZIP):
        raise plan_error("data.path", plan.path, _EXPECTED, _DRAWINGS)
    if not path.is_file():  # to open a pipe would wait for its other end
        raise plan_error("data.path", plan.path, _EXPECTED, "It is no regular file: choose another.")
    return ParquetSource(path, [path], plan)


def _folder_source(root: Path, plan: DataPlan) -> Source:
    names = [name for name in visible_files(root) if name.lower().endswith((TABLE_SUFFIX, *IMAGE_SUFFIXES))]
    if not names:
        remedy = "The folder holds neither images nor Parquet files: choose another."
        if any(name.lower().endswith((LINES, SVG)) for name in visible_files(root)):
            remedy = _DRAWINGS
        raise plan_error("data.path", plan.path, _EXPECTED, remedy)
    names = files_of_split(root, names, plan)
    tables = [name for name in names if name.lower().endswith(TABLE_SUFFIX)]
    if not tables:
        _check_no_column(plan)
        return FolderSource(root, names, plan.label_column)
    if len(tables) < len(names):
        remedy = f"The folder holds {len(tables)} Parquet and {len(names) - len(tables)} image files: separate them."
        raise plan_error("data.path", plan.path, "a folder of Parquet files or of images, not of both", remedy)
    return ParquetSource(root, [root / name for name in tables], plan)


def _check_no_column(plan: DataPlan) -> None:
    if plan.image_column is not None:
        remedy = "Only tables have columns of images: leave it out."
        raise plan_error("data.image_column", plan.image_column, f"null for {plan.path}", remedy)
