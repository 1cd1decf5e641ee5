"""What `data.path` may name: the digits, a Parquet file, a folder of Parquet files or of images, a hub data set."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from region_workers.data.columns import check_label_column, class_names, image_column, labels_of
from region_workers.data.decode import Item, Label
from region_workers.data.hub import HubSource
from region_workers.data.splits import check_not_split, files_of_split, without_split_folder
from schemas.digest import digest
from schemas.errors import plan_error
from schemas.plan import DIGITS, DataPlan

_IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"}
)
_ROWS_AT_ONCE = 64
_FOLDER_LABEL = "label"  # the name that the datasets library gives to the folders of a folder of images
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_EXPECTED = f"a Parquet file, a folder of Parquet files or of images, a data set's name on the hub, or {DIGITS}"


class Source(Protocol):
    """Image files in a fixed order, with their labels where the plan asks for them."""

    def identity(self) -> dict[str, Any]:
        """What changes when the images may have changed, as JSON values."""

    def count(self) -> int | None:
        """The number of images, readable or not; None if only reading them tells."""

    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of their numbers, if the source knows them before it is read."""

    def items(self) -> Iterator[Item]:
        """Every image, readable or not; without labels unless the plan names a column of them."""


def open_source(plan: DataPlan, cache_dir: Path) -> Source:
    """The source that `plan.path` names; a relative path is relative to the current directory. Raises PlanError."""
    path = Path(plan.path).expanduser()
    if plan.path == DIGITS or path.exists():
        return _local_source(path, plan)
    if _HUB_NAME.fullmatch(plan.path) and path.suffix.lower() not in {".parquet", *_IMAGE_SUFFIXES}:
        return HubSource(plan, cache_dir)
    raise plan_error("data.path", plan.path, _EXPECTED, f"There is nothing at {path.absolute()}: check the path.")


class DigitsSource:
    """scikit-learn's 1,797 greyscale digits, 8 x 8 pixels; needs neither files nor a network."""

    def __init__(self, label_column: str | None = None) -> None:
        from sklearn.datasets import load_digits

        if label_column not in (None, _FOLDER_LABEL):
            raise plan_error("data.label_column", label_column, f"{_FOLDER_LABEL} for {DIGITS}", "Set it so.")
        digits = load_digits()
        values = digits.images  # float64 [1797, 8, 8], 0 to 16
        self._images = np.rint(values * 255 / 16).astype(np.uint8)
        self._labels = [int(label) for label in digits.target] if label_column else None

    def identity(self) -> dict[str, Any]:
        return {"kind": "digits", "digest": hashlib.sha256(self._images.tobytes()).hexdigest()}

    def count(self) -> int | None:
        return len(self._images)

    def class_names(self) -> tuple[str, ...] | None:
        return tuple(str(digit) for digit in range(10)) if self._labels else None

    def items(self) -> Iterator[Item]:
        for row, image in enumerate(self._images):
            yield Item(f"row {row}", image, self._labels[row] if self._labels else None)


class ParquetSource:
    """Parquet files with a column of image files, read a few rows at a time. Raises PlanError."""

    def __init__(self, root: Path, files: list[Path], plan: DataPlan) -> None:
        self._root, self._files, self._label_column = root, files, plan.label_column
        self._schema = _open_parquet(files[0]).schema_arrow
        self._column = image_column(self._schema, plan.image_column, str(root))
        for file in files:
            schema = self._schema if file == files[0] else _open_parquet(file).schema_arrow
            image_column(schema, self._column, str(file))
            if self._label_column is not None:
                check_label_column(schema, self._label_column, str(file))

    def identity(self) -> dict[str, Any]:
        return {"kind": "parquet", "column": self._column, **_files_identity(self._root, self._files)}

    def count(self) -> int | None:
        rows: int = sum(_open_parquet(file).metadata.num_rows for file in self._files)
        return rows

    def class_names(self) -> tuple[str, ...] | None:
        return class_names(self._schema, self._label_column) if self._label_column else None

    def items(self) -> Iterator[Item]:
        columns = [self._column] + ([self._label_column] if self._label_column else [])
        for file in self._files:
            row = 0
            for batch in _open_parquet(file).iter_batches(_ROWS_AT_ONCE, columns=columns):
                payloads = _payloads(batch.column(self._column))
                labels: list[Label] = [None] * len(payloads)
                if self._label_column:
                    labels = labels_of(batch, self._label_column)
                for payload, label in zip(payloads, labels, strict=True):
                    yield Item(f"{file.name} row {row}", payload, label)
                    row += 1


class FolderSource:
    """Image files below a folder, in the order of their relative paths; the folders at its top are the classes."""

    def __init__(self, root: Path, files: list[Path], label_column: str | None = None) -> None:
        self._root, self._files = root, files
        self._classes = None if label_column is None else _class_folders(root, files, label_column)

    def identity(self) -> dict[str, Any]:
        return {"kind": "folder", **_files_identity(self._root, self._files)}

    def count(self) -> int | None:
        return len(self._files)

    def class_names(self) -> tuple[str, ...] | None:
        return None if self._classes is None else tuple(sorted(set(self._classes)))

    def items(self) -> Iterator[Item]:
        for number, file in enumerate(self._files):
            label = None if self._classes is None else self._classes[number]
            yield Item(file.relative_to(self._root).as_posix(), file, label)


def _local_source(path: Path, plan: DataPlan) -> Source:
    if plan.config_name is not None:
        remedy = "Only data sets on the hub have configurations: leave it out."
        raise plan_error("data.config_name", plan.config_name, f"null for {plan.path}", remedy)
    if plan.path != DIGITS and path.is_dir():
        return _folder_source(path, plan)
    check_not_split(plan)
    return DigitsSource(plan.label_column) if plan.path == DIGITS else _file_source(path, plan)


def _file_source(path: Path, plan: DataPlan) -> Source:
    if path.suffix.lower() in _IMAGE_SUFFIXES:
        raise plan_error("data.path", plan.path, _EXPECTED, "This is one image: give the folder that holds it.")
    return ParquetSource(path, [path], plan)


def _folder_source(root: Path, plan: DataPlan) -> Source:
    # Hidden files are none of the user's images: macOS leaves "._name.jpg" beside them, caches their own folders.
    files = [path for path in _visible_files(root) if path.suffix.lower() in {".parquet", *_IMAGE_SUFFIXES}]
    if not files:
        raise plan_error("data.path", plan.path, _EXPECTED, "The folder holds neither images nor Parquet files.")
    files = files_of_split(root, files, plan)
    tables = [path for path in files if path.suffix.lower() == ".parquet"]
    if not tables:
        return FolderSource(root, files, plan.label_column)
    if len(tables) < len(files):
        remedy = f"The folder holds {len(tables)} Parquet and {len(files) - len(tables)} image files: separate them."
        raise plan_error("data.path", plan.path, "a folder of Parquet files or of images, not of both", remedy)
    return ParquetSource(root, tables, plan)


def _class_folders(root: Path, files: list[Path], label_column: str) -> list[str]:
    """The class of each file: its folder at the top, below a split's own folder."""
    if label_column != _FOLDER_LABEL:
        remedy = "The folders at its top are the classes: set it so."
        raise plan_error("data.label_column", label_column, f"{_FOLDER_LABEL} for the folder of images {root}", remedy)
    relative = [file.relative_to(root) for file in files]
    inside = without_split_folder(relative)
    for whole, path in zip(relative, inside, strict=True):
        if len(path.parts) < 2:
            remedy = f"{whole} lies in none: move it, or set data.label_column to null."
            raise plan_error("data.label_column", label_column, "every image in the folder of its class", remedy)
    return [path.parts[0] for path in inside]


def _visible_files(root: Path) -> list[Path]:
    relative = (path.relative_to(root) for path in root.rglob("*"))
    shown = [path for path in relative if not any(part.startswith(".") for part in path.parts)]
    return [root / path for path in sorted(shown, key=Path.as_posix) if (root / path).is_file()]


def _files_identity(root: Path, files: list[Path]) -> dict[str, Any]:
    # Sizes and times stand for the content: hashing it would read the whole data set on every start.
    entries = []
    for file in files:
        status = file.stat()
        name = file.name if file == root else file.relative_to(root).as_posix()
        entries.append([name, status.st_size, status.st_mtime_ns])
    return {"path": str(root.resolve()), "files": len(files), "files_digest": digest(entries)}


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        remedy = f"It does not read as Parquet ({str(error).splitlines()[0]}): convert or replace the file."
        raise plan_error("data.path", path, "a Parquet file", remedy) from error


def _payloads(column: pa.Array) -> list[bytes | None]:
    if pa.types.is_struct(column.type):
        # flatten() and not field(): it carries the nulls of the struct down to its bytes.
        column = column.flatten()[column.type.get_field_index("bytes")]
    payloads: list[bytes | None] = column.to_pylist()
    return payloads
