"""What `data.path` may name: the digits, a Parquet file, a folder of Parquet files or of images, a hub data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from region_workers.data.columns import check_label_column, class_names, image_column, labels_of
from region_workers.data.decode import Item, Label
from region_workers.data.files import (
    FOLDER_LABEL,
    IMAGE_SUFFIXES,
    TABLE_SUFFIX,
    check_not_split,
    class_folders,
    files_digest,
    files_of_split,
    names_hub_data,
    visible_files,
)
from region_workers.data.hub import HubSource
from schemas.errors import plan_error
from schemas.plan import DIGITS, DataPlan

_ROWS_AT_ONCE = 64
_READ_BYTES = 1 << 20
_EXPECTED = f"a Parquet file, a folder of Parquet files or of images, a data set's name on the hub, or {DIGITS}"


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
    raise plan_error("data.path", plan.path, _EXPECTED, f"There is nothing at {path.absolute()}: check the path.")


class DigitsSource:
    """scikit-learn's 1,797 greyscale digits, 8 x 8 pixels; needs neither files nor a network."""

    def __init__(self, label_column: str | None = None) -> None:
        from sklearn.datasets import load_digits

        if label_column not in (None, FOLDER_LABEL):
            raise plan_error("data.label_column", label_column, f"{FOLDER_LABEL} for {DIGITS}", "Set it so.")
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

    def items(self, start: int = 0) -> Iterator[Item]:
        height, width = self._images.shape[1:]
        header = f"P5 {width} {height} 255\n".encode()  # PGM, the plainest of image files
        for row in range(start, len(self._images)):
            file = header + self._images[row].tobytes()
            yield Item(f"row {row}", file, self._labels[row] if self._labels else None)


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
        folder = self._root if self._root.is_dir() else self._root.parent
        names = [file.relative_to(folder).as_posix() for file in self._files]
        return {"kind": "parquet", "column": self._column, **_identity(self._root, folder, names)}

    def count(self) -> int | None:
        rows: int = sum(_open_parquet(file).metadata.num_rows for file in self._files)
        return rows

    def class_names(self) -> tuple[str, ...] | None:
        return class_names(self._schema, self._label_column) if self._label_column else None

    def items(self, start: int = 0) -> Iterator[Item]:
        for file in self._files:
            table = _open_parquet(file)
            rows = table.metadata.num_rows
            if start < rows:
                yield from self._items_of(file, table, start)
            start = max(0, start - rows)

    def _items_of(self, file: Path, table: pq.ParquetFile, start: int) -> Iterator[Item]:
        columns = [self._column] + ([self._label_column] if self._label_column else [])
        row, groups = _row_groups_from(table, start)
        for batch in _batches(file, table, groups, columns):
            payloads = _payloads(batch.column(self._column))
            labels: list[Label] = [None] * len(payloads)
            if self._label_column:
                labels = labels_of(batch, self._label_column)
            for payload, label in zip(payloads, labels, strict=True):
                if row >= start:
                    yield Item(f"{file.name} row {row}", payload, label)
                row += 1


class FolderSource:
    """Image files below a folder, in the order of their relative paths; the folders at its top are the classes."""

    def __init__(self, root: Path, names: list[str], label_column: str | None = None) -> None:
        self._root, self._names = root, names
        self._classes = None if label_column is None else class_folders(root, names, label_column)

    def identity(self) -> dict[str, Any]:
        return {"kind": "folder", **_identity(self._root, self._root, self._names)}

    def count(self) -> int | None:
        return len(self._names)

    def class_names(self) -> tuple[str, ...] | None:
        return None if self._classes is None else tuple(sorted(set(self._classes)))

    def items(self, start: int = 0) -> Iterator[Item]:
        for number in range(start, len(self._names)):
            label = None if self._classes is None else self._classes[number]
            yield Item(self._names[number], f"{self._root}/{self._names[number]}", label)


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
    if not path.is_file():  # to open a pipe would wait for its other end
        raise plan_error("data.path", plan.path, _EXPECTED, "It is no regular file: choose another.")
    return ParquetSource(path, [path], plan)


def _folder_source(root: Path, plan: DataPlan) -> Source:
    names = [name for name in visible_files(root) if name.lower().endswith((TABLE_SUFFIX, *IMAGE_SUFFIXES))]
    if not names:
        remedy = "The folder holds neither images nor Parquet files: choose another."
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


def _identity(path: Path, folder: Path, names: list[str]) -> dict[str, Any]:
    return {"path": str(path.resolve()), "files": len(names), "files_digest": files_digest(folder, names)}


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        # Read a little at a time: otherwise all of a row group, which may be the whole file, would lie in memory.
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise _bad_table(path, error) from error


def _bad_table(path: Path, error: Exception) -> Exception:
    remedy = f"It does not read as Parquet ({str(error).splitlines()[0]}): convert or replace the file."
    return plan_error("data.path", path, "a Parquet file", remedy)


def _batches(file: Path, table: pq.ParquetFile, groups: list[int], columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from table.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise _bad_table(file, error) from error


def _row_groups_from(table: pq.ParquetFile, start: int) -> tuple[int, list[int]]:
    """The number of the first row in the row group that holds row `start`; that group and those behind it."""
    first_row, count = 0, table.metadata.num_row_groups
    for group in range(count):
        rows = table.metadata.row_group(group).num_rows
        if first_row + rows > start:
            return first_row, list(range(group, count))
        first_row += rows
    return first_row, []


def _payloads(column: pa.Array) -> list[bytes | None]:
    if pa.types.is_struct(column.type):
        # flatten() and not field(): it carries the nulls of the struct down to its bytes.
        column = column.flatten()[column.type.get_field_index("bytes")]
    payloads: list[bytes | None] = column.to_pylist()
    return payloads
