"""Tables of image files in Parquet, or as a hub describes them: their columns of images and labels, read in pieces."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from region_workers.data.decode import Item, Label
from region_workers.data.files import files_identity, written_name
from schemas.errors import plan_error
from schemas.plan import DataPlan

_ROWS_AT_ONCE = 64
_READ_BYTES = 1 << 20


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
        return {"kind": "parquet", "column": self._column, **files_identity(self._root, folder, names)}

    def count(self) -> int:
        return sum(int(_open_parquet(file).metadata.num_rows) for file in self._files)

    def class_names(self) -> tuple[str, ...] | None:
        return class_names(self._schema, self._label_column) if self._label_column else None

    def items(self, start: int = 0) -> Iterator[Item]:
        for file in self._files:
            table, row, name = _open_parquet(file), 0, written_name(file.name)
            for group in range(table.metadata.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if start < rows:
                    for offset, (payload, label) in enumerate(self._rows_of(file, table, group)):
                        if offset >= start:
                            yield Item(f"{name} row {row + offset}", payload, label)
                row, start = row + rows, max(0, start - rows)

    def _rows_of(self, file: Path, table: pq.ParquetFile, group: int) -> Iterator[tuple[bytes | None, Label]]:
        columns = [self._column] + ([self._label_column] if self._label_column else [])
        try:
            for batch in table.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False):
                files = batch.column(self._column)
                if pa.types.is_struct(files.type):
                    files = pc.struct_field(files, "bytes")
                labels = _labels_of(batch, self._label_column) if self._label_column else [None] * len(files)
                yield from zip(files.to_pylist(), labels, strict=True)
        except (pa.ArrowException, OSError) as error:
            raise _bad_table(file, error) from error


def image_column(schema: pa.Schema, wanted: str | None, path: str) -> str:
    """The name of the column of images: `wanted`, else the only candidate.

    Candidates are the columns that the datasets library marked as images; without such a mark, those of image files:
    binary, or struct{bytes, path}. Raises PlanError that names the candidates.
    """
    possible = [field.name for field in schema if _holds_files(field.type)]
    if wanted is not None:
        if wanted not in possible:
            raise _error(wanted, f"a column of image files of {path}", possible, schema)
        return wanted
    candidates = _marked_as_images(schema) or possible
    if len(candidates) != 1:
        raise _error("null", f"one column of image files in {path}", candidates, schema)
    return candidates[0]


def check_label_column(schema: pa.Schema, wanted: str, path: str) -> None:
    """Raise PlanError unless `wanted` is a column of whole numbers or strings; `a.b` is field b of the struct a."""
    kind = _type_of(schema, wanted)
    if kind is None or not _holds_labels(kind):
        has = "it is not there" if kind is None else f"it holds {kind}"
        possible = [name for name, kind in _with_fields(schema) if _holds_labels(kind)]
        named = f"Set data.label_column to one of: {', '.join(possible)}."
        remedy = named if possible else "No column holds labels: choose other data."
        raise plan_error("data.label_column", wanted, f"a column of integers or strings in {path}; {has}", remedy)


def class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The names of the classes that the datasets library noted for a column (its ClassLabel), if it did."""
    feature: Any = _noted_features(schema)
    for part in _steps(schema, column):
        feature = feature.get(part) if isinstance(feature, dict) else None
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel" or not feature.get("names"):
        return None
    return tuple(str(name) for name in feature["names"])


def _labels_of(batch: pa.RecordBatch, column: str) -> list[Label]:
    steps = _steps(batch.schema, column)
    values = batch.column(steps[0])
    for step in steps[1:]:
        values = pc.struct_field(values, step)
    labels: list[Label] = values.to_pylist()
    return labels


def _holds_files(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold image files: binary, or a struct with binary `bytes`."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    return bool(
        types.is_integer(kind) or types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind)
    )


def _steps(schema: pa.Schema, column: str) -> list[str]:
    return [column] if schema.get_field_index(column) >= 0 else column.split(".")


def _type_of(schema: pa.Schema, column: str) -> pa.DataType | None:
    first, *rest = _steps(schema, column)
    if schema.get_field_index(first) < 0:
        return None
    kind = schema.field(first).type
    for step in rest:
        if not pa.types.is_struct(kind) or kind.get_field_index(step) < 0:
            return None
        kind = kind.field(step).type
    return kind


def _with_fields(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    named = []
    for field in schema:
        inner = field.type if pa.types.is_struct(field.type) and not _holds_files(field.type) else ()
        named += [(field.name, field.type)] + [(f"{field.name}.{part.name}", part.type) for part in inner]
    return named


def _noted_features(schema: pa.Schema) -> dict[str, Any]:
    metadata = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(metadata)["info"]["features"] if metadata else {}
    except (ValueError, LookupError, TypeError):  # somebody else's note, or a damaged one
        return {}
    return features if isinstance(features, dict) else {}


def _marked_as_images(schema: pa.Schema) -> list[str]:
    features = _noted_features(schema)
    return [
        field.name
        for field in schema
        if isinstance(features.get(field.name), dict)
        and features[field.name].get("_type") == "Image"
        and _holds_files(field.type)
    ]


def _error(value: str, expected: str, candidates: list[str], schema: pa.Schema) -> Exception:
    if candidates:
        remedy = f"Set data.image_column to one of: {', '.join(candidates)}."
    else:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        remedy = f"No column holds image files (binary, or a struct with bytes); it has: {columns}. Choose other data."
    return plan_error("data.image_column", value, expected, remedy)


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        # Read a little at a time: otherwise all of a row group, which may be the whole file, would lie in memory.
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise _bad_table(path, error) from error


def _bad_table(path: Path, error: Exception) -> Exception:
    remedy = f"It does not read as Parquet ({str(error).splitlines()[0]}): convert or replace the file."
    return plan_error("data.path", path, "a Parquet file", remedy)
