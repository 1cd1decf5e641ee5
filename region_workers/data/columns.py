"""Which column of a table holds the images."""

from __future__ import annotations

import json

import pyarrow as pa

from schemas.errors import plan_error


def image_column(schema: pa.Schema, wanted: str | None, path: str) -> str:
    """The name of the column of images: `wanted`, else the only candidate.

    Candidates are the columns that the datasets library marked as images; without such a mark, those of image files:
    binary, or struct{bytes, path}. Raises PlanError that names the candidates.
    """
    possible = [field.name for field in schema if holds_files(field.type)]
    if wanted is not None:
        if wanted not in possible:
            raise _error(wanted, f"a column of image files of {path}", possible, schema)
        return wanted
    candidates = _marked_as_images(schema) or possible
    if len(candidates) != 1:
        raise _error("null", f"one column of image files in {path}", candidates, schema)
    return candidates[0]


def holds_files(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold image files: binary, or a struct with binary `bytes`."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _marked_as_images(schema: pa.Schema) -> list[str]:
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return []
    features = json.loads(metadata).get("info", {}).get("features", {})
    return [
        field.name
        for field in schema
        if isinstance(features.get(field.name), dict)
        and features[field.name].get("_type") == "Image"
        and holds_files(field.type)
    ]


def _error(value: str, expected: str, candidates: list[str], schema: pa.Schema) -> Exception:
    if candidates:
        remedy = f"Set data.image_column to one of: {', '.join(candidates)}."
    else:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        remedy = f"No column holds image files (binary, or a struct with bytes); it has: {columns}."
    return plan_error("data.image_column", value, expected, remedy)
