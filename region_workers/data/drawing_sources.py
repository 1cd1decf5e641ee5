"""What `data.path` may name for drawings: QuickDraw's .ndjson files, or SVG files in a folder or a .zip."""

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from region_workers.data.decode import Item
from region_workers.data.drawings import Stroke, UnreadableDrawingError
from region_workers.data.files import (
    LINES,
    SVG,
    ZIP,
    check_not_split,
    files_identity,
    files_of_split,
    visible_files,
    written_name,
)
from region_workers.data.sources import FolderSource, open_source
from region_workers.data.svg import strokes_of_svg
from region_workers.storage.places import nothing_at
from schemas.errors import plan_error
from schemas.plan import DataPlan

MOST_BYTES = 256 << 10  # of one drawing as text, some hundred times what people draw
_EXPECTED = "a QuickDraw .ndjson file, a folder of them, or a folder or .zip of SVG files"


class DrawingSource(Protocol):
    """Drawings in a fixed order."""

    def identity(self) -> dict[str, Any]:
        """What changes when the drawings may have changed, as JSON values."""

    def count(self) -> int:
        """The number of drawings, readable or not."""

    def items(self) -> Iterator[Item]:
        """Every drawing, readable or not."""

    def strokes(self, item: Item) -> list[Stroke]:
        """What was drawn. Raises UnreadableDrawingError."""


def open_drawings(plan: DataPlan) -> DrawingSource:
    """The source that `plan.path` names; a relative path is relative to the current directory. Raises PlanError."""
    path = Path(plan.path).expanduser()
    if path.is_dir():
        return _folder_source(path, plan)
    if not path.is_file():  # to open a pipe would wait for its other end
        raise plan_error("data.path", plan.path, _EXPECTED, nothing_at(plan.path))
    check_not_split(plan)
    if path.suffix.lower() == LINES:
        return LinesSource(path, path.parent, [path.name])
    if path.suffix.lower() == ZIP:
        return ZipSource(path)
    one = "This is one drawing: give the folder that holds it." if path.suffix.lower() == SVG else "Choose another."
    raise plan_error("data.path", plan.path, _EXPECTED, one)


def count_data(plan: DataPlan, cache_dir: Path) -> int | None:
    """How many images or drawings the plan's source has; None if only reading them tells. Raises PlanError."""
    return open_source(plan, cache_dir).count() if plan.drawings is None else open_drawings(plan).count()


class LinesSource:
    """Files with a JSON object a line, whose `drawing` is a list of strokes [x..., y...] or [x..., y..., ms...]."""

    def __init__(self, path: Path, folder: Path, names: Sequence[str]) -> None:
        self._path, self._folder, self._names = path, folder, names

    def identity(self) -> dict[str, Any]:
        return {"kind": "lines", **files_identity(self._path, self._folder, self._names)}

    def count(self) -> int:
        return sum(1 for _ in self.items())

    def items(self) -> Iterator[Item]:
        for name in self._names:
            told = "" if len(self._names) == 1 else f"{written_name(name)} "
            with (self._folder / name).open("rb") as file:
                for number, line in enumerate(_lines(file), 1):
                    if line.strip():
                        yield Item(f"{told}line {number}", line)

    def strokes(self, item: Item) -> list[Stroke]:
        assert isinstance(item.payload, bytes)
        return strokes_of_json(_bounded(item.payload))


class SvgFolderSource(FolderSource):
    """SVG files below a folder, in the order of their relative paths."""

    def strokes(self, item: Item) -> list[Stroke]:
        assert isinstance(item.payload, str)
        try:
            with Path(item.payload).open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise UnreadableDrawingError(str(error)) from error
        return strokes_of_svg(_bounded(data))


class ZipSource:
    """SVG files in a .zip archive, in the order of their names; nothing is unpacked to the disk. Raises PlanError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            remedy = f"It does not read as an archive ({error}): replace the file."
            raise plan_error("data.path", path, "a .zip of SVG files", remedy) from error
        files = [file for file in self._archive.infolist() if file.filename.lower().endswith(SVG)]
        self._files = sorted((file for file in files if _is_visible(file.filename)), key=lambda file: file.filename)
        if not self._files:
            raise plan_error("data.path", path, _EXPECTED, "The archive holds no SVG files: choose another.")

    def identity(self) -> dict[str, Any]:
        return {"kind": "zip", **files_identity(self._path, self._path.parent, [self._path.name])}

    def count(self) -> int:
        return len(self._files)

    def items(self) -> Iterator[Item]:
        return (Item(file.filename, str(number)) for number, file in enumerate(self._files))

    def strokes(self, item: Item) -> list[Stroke]:
        assert isinstance(item.payload, str)
        try:
            with self._archive.open(self._files[int(item.payload)]) as file:
                data = file.read(MOST_BYTES + 1)  # no more, whatever the archive says of its size
        except Exception as error:  # zipfile and its decompressors may raise anything; it is that one file's
            raise UnreadableDrawingError(f"{type(error).__name__}: {error}") from error
        return strokes_of_svg(_bounded(data))


def strokes_of_json(line: bytes) -> list[Stroke]:
    """The strokes of a line of a QuickDraw file, float64 [n, 2]; times, if it has them, are left out."""
    try:
        strokes = [np.array(stroke[:2], np.float64) for stroke in json.loads(line)["drawing"]]
    except (LookupError, TypeError) as error:
        raise UnreadableDrawingError("it is no object with a list `drawing` of strokes") from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise UnreadableDrawingError(f"{type(error).__name__}: {error}") from error
    if any(stroke.ndim != 2 or len(stroke) != 2 for stroke in strokes):
        raise UnreadableDrawingError("a stroke is no list of x and of y, equally long")
    return [stroke.T for stroke in strokes]


def _bounded(data: bytes) -> bytes:
    if len(data) > MOST_BYTES:
        raise UnreadableDrawingError(f"it has more than {MOST_BYTES:,} bytes, which no drawing of use has")
    return data


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of one that is too long no more than shows that it is."""
    while line := file.readline(MOST_BYTES + 2):
        yield line
        while len(line) == MOST_BYTES + 2 and not line.endswith(b"\n"):
            line = file.readline(MOST_BYTES + 2)


def _folder_source(root: Path, plan: DataPlan) -> DrawingSource:
    names = [name for name in visible_files(root) if name.lower().endswith((LINES, SVG))]
    if not names:
        remedy = f"The folder holds neither {LINES} nor {SVG} files: choose another."
        raise plan_error("data.path", plan.path, _EXPECTED, remedy)
    names = files_of_split(root, names, plan)
    tables = [name for name in names if name.lower().endswith(LINES)]
    if not tables:
        return SvgFolderSource(root, names)
    if len(tables) < len(names):
        remedy = f"The folder holds {len(tables)} {LINES} and {len(names) - len(tables)} {SVG} files: separate them."
        raise plan_error("data.path", plan.path, "files of one kind", remedy)
    return LinesSource(root, root, tables)


def _is_visible(name: str) -> bool:
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return not any(part.startswith((".", "__MACOSX")) for part in parts)
