"""Writing what must survive: temporary name, fsync, rename, fsync of the folder, and of the folders made for it."""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from schemas.errors import RunFailed, UserError

_TEMPORARY = ".partial-"
_RETIRED = f"{_TEMPORARY}retired-"  # then the name of the folder that something newer is to replace
_OURS = re.compile(rf"{re.escape(_TEMPORARY)}([0-9a-f]{{12}}|retired)-.+", re.DOTALL)  # else it is a user's own
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how Rust puts it


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then move it to `path`: a reader sees the old file or the new one, whole."""
    with naming(path):
        make_folder(path.parent)
        temporary = _temporary_beside(path)
        try:
            write(temporary)
            _fsync(temporary)
            temporary.replace(path)
            _fsync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, data: bytes) -> None:
    write_file(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_model(path: Path, model: BaseModel) -> None:
    """`write_file` for a pydantic model, as indented JSON."""
    write_text(path, model.model_dump_json(indent=2) + "\n")


def replace_model(path: Path, model: BaseModel) -> None:
    """Put a model at `path` in one move, but without waiting for the disk: for what a crash may lose."""
    with naming(path):
        temporary = _temporary_beside(path)
        make_folder(path.parent)
        temporary.write_text(model.model_dump_json())
        temporary.replace(path)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, durably."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _fsync(folder.parent)


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder, then move it to `path` durably, in place of an older one.

    No file system replaces a folder in one move. The older one stands aside until the new one stands for good, and
    `remove_leftovers` puts it back if that was never reached.
    """
    with naming(path):
        make_folder(path.parent)
        temporary, retired = _temporary_beside(path), path.parent / f"{_RETIRED}{path.name}"
        _recover(retired)
        temporary.mkdir()
        try:
            write(temporary)
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _fsync(Path(folder) / name)
                _fsync(Path(folder))
            if path.exists():
                path.rename(retired)
            temporary.rename(path)
            _fsync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            _recover(retired)


def _recover(retired: Path) -> None:
    """Put a retired folder back where nothing newer stands, else delete it."""
    place = retired.with_name(retired.name.removeprefix(_RETIRED))
    if retired.is_dir() and not place.exists():
        retired.rename(place)
    elif retired.is_dir():
        shutil.rmtree(retired)


def remove_folder(path: Path) -> None:
    """Delete a folder so that a reader sees it whole or not at all."""
    retired = _temporary_beside(path)
    path.rename(retired)
    shutil.rmtree(retired)


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is still being written, or was left by a killed writer."""
    return _OURS.fullmatch(name) is not None


def remove_leftovers(folder: Path, below: bool = False) -> None:
    """Delete what a killed writer left under temporary names in `folder`, with `below` in all folders below it too.

    A folder that it was about to replace is put back. Only names that we give count.
    """
    names = f"{_TEMPORARY}*"
    for leftover in sorted(folder.rglob(names) if below else folder.glob(names)):
        if not is_temporary(leftover.name):
            continue
        if leftover.name.startswith(_RETIRED):
            _recover(leftover)
        elif leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)  # it may have gone with the folder that it was in


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the disk refuses becomes an OSError that names `path`.

    safetensors says it in words, Python with no name, or with that of the file which was to become `path`.
    """
    try:
        yield
    except OSError as error:
        named = [str(name) for name in (error.filename, error.filename2) if name is not None]
        if error.errno is None or (named and not any(_TEMPORARY in name for name in named)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except (UserError, RunFailed):
        raise
    except Exception as error:
        told = _OS_ERROR.search(str(error))
        if told is None:
            raise
        raise OSError(int(told[1]), os.strerror(int(told[1])), str(path)) from error


def _temporary_beside(path: Path) -> Path:
    return path.parent / f"{_TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
