"""The Arrow tables of a run: every interval's masks, the moves of sparse ones, and the metrics of each stage."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from region_workers.storage.durable import write_file
from schemas.job import MetricsRow

MASKS = pa.schema(
    [
        pa.field("region", pa.string()),
        pa.field("interval", pa.int64()),
        pa.field("step", pa.int64()),
        pa.field("bits", pa.int64()),
        pa.field("mask", pa.binary()),  # numpy.packbits of the bits, kept = 1
    ]
)

_KINDS: dict[Any, pa.DataType] = {
    **dict.fromkeys((int, int | None), pa.int64()),
    **dict.fromkeys((float, float | None), pa.float64()),
}
METRICS = pa.schema([(name, _KINDS[field.annotation]) for name, field in MetricsRow.model_fields.items()])

MASK_MOVES = pa.schema(  # a row for each layer: at step 0 of the first mask, then of each update, in its step's place
    [
        pa.field("step", pa.int64()),
        pa.field("layer", pa.string()),
        pa.field("weights", pa.int64()),
        pa.field("kept", pa.int64()),
        pa.field("exchanged", pa.int64()),  # kept before the update, not after it
        pa.field("replaced", pa.int64()),  # kept by the first mask, not by this one
        pa.field("ever_kept", pa.int64()),  # by any mask so far
    ]
)

Row = dict[str, object]


def write_masks(path: Path, rows: list[Row]) -> None:
    table = pa.Table.from_pylist(rows, schema=MASKS)

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, MASKS) as writer:
            writer.write_table(table)

    write_file(path, write)


def read_masks(source: Path | bytes) -> list[Row]:
    data = source if isinstance(source, bytes) else source.read_bytes()
    rows: list[Row] = pa.ipc.open_file(pa.BufferReader(data)).read_all().to_pylist()
    return rows


def write_metrics(path: Path, rows: list[Row]) -> None:
    table = pa.Table.from_pylist(rows, schema=METRICS)
    write_file(path, lambda temporary: pq.write_table(table, temporary))


def read_metrics(source: Path | bytes) -> list[Row]:
    file = pa.BufferReader(source) if isinstance(source, bytes) else source
    rows: list[Row] = pq.read_table(file, schema=METRICS).to_pylist()
    return rows


def write_mask_moves(path: Path, table: pa.Table) -> None:
    write_file(path, lambda temporary: pq.write_table(table, temporary))


def read_mask_moves(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data), schema=MASK_MOVES)
