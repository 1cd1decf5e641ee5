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

from region_workers.data.columns import image_column
from region_workers.data.decode import Payload
from region_workers.data.hub import HubSource
from region_workers.data.splits import check_not_split, files_of_split
from schemas.digest import digest
from schemas.errors import plan_error
from schemas.plan import DIGITS, DataPlan

_IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"}
)
_ROWS_AT_ONCE = 64
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_EXPECTED = f"a Parquet file, a folder of Parquet files or of images, a data set's name on the hub, or {DIGITS}"


class Source(Protocol):
    """Image files in a fixed order."""

    def identity(self) -> dict[str, Any]:
        """What changes when the images may have changed, as JSON values."""

    def count(self) -> int | None:
        """The number of images, readable or not; None if only reading them tells."""

    def images(self) -> Iterator[tuple[str, Payload]]:
        """Each image's name (file name or row number) and file."""


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

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        values = load_digits().images  # float64 [1797, 8, 8], 0 to 16
        self._images = np.rint(values * 255 / 16).astype(np.uint8)

    def identity(self) -> dict[str, Any]:
        return {"kind": "digits", "digest": hashlib.sha256(self._images.tobytes()).hexdigest()}

    def count(self) -> int | None:
        return len(self._images)

    def images(self) -> Iterator[tuple[str, Payload]]:
        for row, image in enumerate(self._images):
            yield f"row {row}", image


class ParquetSource:
    """Parquet files with a column of image files, read a few rows at a time. Raises PlanError."""

    def __init__(self, root: Path, files: list[Path], wanted_column: str | None) -> None:
        self._root, self._files = root, files
        self._column = image_column(_open_parquet(files[0]).schema_arrow, wanted_column, str(root))
        for file in files[1:]:
            image_column(_open_parquet(file).schema_arrow, self._column, str(file))

    def identity(self) -> dict[str, Any]:
        return {"kind": "parquet", "column": self._column, **_files_identity(self._root, self._files)}

    def count(self) -> int | None:
        rows: int = sum(_open_parquet(file).metadata.num_rows for file in self._files)
        return rows

    def images(self) -> Iterator[tuple[str, Payload]]:
        for file in self._files:
            row = 0
            for batch in _open_parquet(file).iter_batches(_ROWS_AT_ONCE, columns=[self._column]):
                for payload in _payloads(batch.column(0)):
                    yield f"{file.name} row {row}", payload
                    row += 1


class FolderSource:
    """Image files below a folder, in the order of their relative paths."""

    def __init__(self, root: Path, files: list[Path]) -> None:
        self._root, self._files = root, files

    def identity(self) -> dict[str, Any]:
        return {"kind": "folder", **_files_identity(self._root, self._files)}

    def count(self) -> int | None:
        return len(self._files)

    def images(self) -> Iterator[tuple[str, Payload]]:
        for file in self._files:
            yield file.relative_to(self._root).as_posix(), file


def _local_source(path: Path, plan: DataPlan) -> Source:
    if plan.config_name is not None:
        remedy = "Only data sets on the hub have configurations: leave it out."
        raise plan_error("data.config_name", plan.config_name, f"null for {plan.path}", remedy)
    if plan.path != DIGITS and path.is_dir():
        return _folder_source(path, plan)
    check_not_split(plan)
    return DigitsSource() if plan.path == DIGITS else _file_source(path, plan)


def _file_source(path: Path, plan: DataPlan) -> Source:
    if path.suffix.lower() in _IMAGE_SUFFIXES:
        raise plan_error("data.path", plan.path, _EXPECTED, "This is one image: give the folder that holds it.")
    return ParquetSource(path, [path], plan.image_column)


def _folder_source(root: Path, plan: DataPlan) -> Source:
    # Hidden files are none of the user's images: macOS leaves "._name.jpg" beside them, caches their own folders.
    files = [path for path in _visible_files(root) if path.suffix.lower() in {".parquet", *_IMAGE_SUFFIXES}]
    if not files:
        raise plan_error("data.path", plan.path, _EXPECTED, "The folder holds neither images nor Parquet files.")
    files = files_of_split(root, files, plan)
    tables = [path for path in files if path.suffix.lower() == ".parquet"]
    if not tables:
        return FolderSource(root, files)
    if len(tables) < len(files):
        remedy = f"The folder holds {len(tables)} Parquet and {len(files) - len(tables)} image files: separate them."
        raise plan_error("data.path", plan.path, "a folder of Parquet files or of images, not of both", remedy)
    return ParquetSource(root, tables, plan.image_column)


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
