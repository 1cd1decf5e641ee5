"""A power cut at every point of a durable write: what was not synced is lost, and the reader sees the old or the new.

The writes are real; what they ask of the file system is recorded as a list of operations, and for each beginning of
the list the disk is built as the cut may have left it. File data survives only if the file was synced after it was
written; a new, renamed or deleted name surely holds only once its folder was synced, and before that it may or may not.
"""

import functools
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from region_workers.storage.durable import remove_leftovers, write_bytes, write_file, write_folder, write_model
from schemas.job import DrawTarget

_MOST_UNSURE = 10  # names, all of whose combinations are tried


@dataclass(eq=False)
class Node:
    """A file or a folder, whatever its name is."""

    is_folder: bool
    data: bytes = b""


@dataclass(eq=False)
class Naming:
    """A name in a folder that comes to stand for a node, or for nothing; with `old`, another name goes meanwhile."""

    folder: Node
    name: str
    node: Node | None
    old: str | None = None


@dataclass(eq=False)
class Sync:
    """A file's data, or a folder's names, are on the disk."""

    node: Node
    data: bytes | None


Names = dict[Node, dict[str, Node]]


@dataclass
class Disk:
    """What stood below `root` at the start, all of it synced, and the operations since."""

    root: Path
    top: Node = field(default_factory=lambda: Node(True))
    first: Names = field(default_factory=dict)
    now: Names = field(default_factory=dict)
    operations: list[Naming | Sync] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._take(self.top, self.root)
        self.now = {folder: dict(names) for folder, names in self.first.items()}

    def _take(self, folder: Node, path: Path) -> None:
        self.first[folder] = {}
        for child in path.iterdir():
            node = self.first[folder][child.name] = Node(child.is_dir(), b"" if child.is_dir() else child.read_bytes())
            if child.is_dir():
                self._take(node, child)

    def find(self, path: Path) -> Node | None:
        """What stands at a path now."""
        node: Node | None = self.top
        for part in path.relative_to(self.root).parts:
            node = self.now[node].get(part) if node in self.now else None
        return node

    def name(self, path: Path, node: Node | None, old: Path | None = None) -> None:
        """Have a path stand for a node; nothing if its folder is missing."""
        folder = self.find(path.parent)
        if folder is None:
            return
        if old is not None:
            assert old.parent == path.parent, "a move between folders"
            del self.now[folder][old.name]
        if node is None:
            del self.now[folder][path.name]
        else:
            self.now[folder][path.name] = node
            if node.is_folder:
                self.now.setdefault(node, {})
        self.operations.append(Naming(folder, path.name, node, old.name if old else None))

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit event of Python, sent before it is done."""
        if event == "open" and isinstance(arguments[0], str | Path) and arguments[2] & os.O_CREAT:
            path = Path(arguments[0])
            if path.is_relative_to(self.root) and self.find(path) is None:
                self.name(path, Node(False))
        elif event == "os.mkdir" and Path(arguments[0]).is_relative_to(self.root):
            if self.find(Path(arguments[0])) is None:
                self.name(Path(arguments[0]), Node(True))
        elif event == "os.rename" and Path(arguments[0]).is_relative_to(self.root):
            self.name(Path(arguments[1]), self.find(Path(arguments[0])), Path(arguments[0]))
        elif event in ("os.remove", "os.rmdir"):
            path = _of_descriptor(arguments[1]) / arguments[0] if arguments[1] >= 0 else Path(arguments[0])
            if path.is_relative_to(self.root) and self.find(path) is not None:
                self.name(path, None)

    def sync(self, descriptor: int) -> None:
        """`os.fsync`."""
        path = _of_descriptor(descriptor)
        node = self.find(path)
        assert node is not None, path
        self.operations.append(Sync(node, None if node.is_folder else path.read_bytes()))

    def cuts(self, count: int) -> Iterator[tuple[Names, dict[Node, bytes]]]:
        """Every state of the disk after a cut that came when `count` operations had been asked for."""
        done = self.operations[:count]
        synced = {each.node: index for index, each in enumerate(done) if isinstance(each, Sync)}
        data = {each.node: each.data for each in done if isinstance(each, Sync) and each.data is not None}
        namings = [(index, each) for index, each in enumerate(done) if isinstance(each, Naming)]
        unsure = [each for index, each in namings if synced.get(each.folder, -1) < index]
        assert len(unsure) <= _MOST_UNSURE
        for chosen in itertools.product((True, False), repeat=len(unsure)):
            left_out = {each for each, happened in zip(unsure, chosen, strict=True) if not happened}
            yield self._names([each for _, each in namings if each not in left_out]), data

    def _names(self, namings: list[Naming]) -> Names:
        names = {folder: dict(inside) for folder, inside in self.first.items()}
        for each in namings:
            inside = names.setdefault(each.folder, {})
            if each.old is not None:
                inside.pop(each.old, None)
            if each.node is None:
                inside.pop(each.name, None)
            else:
                inside[each.name] = each.node
        return names

    def build(self, place: Path, names: Names, data: dict[Node, bytes], folder: Node | None = None) -> None:
        """Write a state of the disk to `place`."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name, node in names.get(folder or self.top, {}).items():
            if node.is_folder:
                self.build(place / name, names, data, node)
            else:
                (place / name).write_bytes(data.get(node, node.data))


def _of_descriptor(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


_watchers: list[Disk] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    for disk in _watchers:
        disk.see(event, arguments)


@functools.cache
def _listen() -> None:
    sys.addaudithook(_audit)  # for good: there is no taking it away


@contextmanager
def _recorded(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """What is asked of the disk within it."""
    disk = Disk(root)
    _listen()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk.sync)
        _watchers.append(disk)
        try:
            yield disk
        finally:
            _watchers.remove(disk)


Content = bytes | dict[str, bytes] | None


def _content(path: Path) -> Content:
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return path.read_bytes() if path.is_file() else None


def _fill(text: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "below").mkdir()
        for name in ("a", "below/b"):
            (folder / name).write_bytes(text)

    return write


_MODELS = {text: DrawTarget(region=text.decode(), pruning_ratio=0.5) for text in (b"old", b"new")}
_WRITES: dict[str, Callable[[Path, bytes], None]] = {
    "bytes": write_bytes,
    "model": lambda path, text: write_model(path, _MODELS[text]),
    "file": lambda path, text: write_file(path, lambda temporary: temporary.write_bytes(text) and None),
    "folder": lambda path, text: write_folder(path, _fill(text)),
}


@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("kind", _WRITES)
def test_a_power_cut_at_any_point_of_a_write_leaves_the_old_or_the_new_and_after_it_the_new(
    kind: str, replaces: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, after = tmp_path / "disk", tmp_path / "after"
    place = Path("run/stage/it")
    root.mkdir()
    if replaces:
        _WRITES[kind](root / place, b"old")
    old = _content(root / place)
    with _recorded(root, monkeypatch) as disk:
        _WRITES[kind](root / place, b"new")
    new = _content(root / place)
    assert new not in (old, None)

    for count in range(len(disk.operations) + 1):
        allowed = [new] if count == len(disk.operations) else [old, new]
        for names, data in disk.cuts(count):
            disk.build(after, names, data)
            if kind != "folder":
                assert _content(after / place) in allowed, disk.operations[:count]
            remove_leftovers(after, below=True)
            assert _content(after / place) in allowed, disk.operations[:count]
            assert not list(after.rglob(".partial-*"))
