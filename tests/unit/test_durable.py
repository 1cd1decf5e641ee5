"""Durable writing: a reader sees the old bytes or the new ones, never half of them."""

import errno
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from region_workers.storage.durable import is_temporary, remove_leftovers, write_file, write_folder, write_text
from region_workers.storage.run_files import RunFiles


def test_a_writer_that_breaks_leaves_the_old_file_and_no_debris(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def break_off(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_file(path, break_off)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("names", [(), ("PART/file",), ("elsewhere", None, "PART/file")])
def test_what_the_disk_refuses_names_what_was_to_be_written(names: tuple[str | None, ...], tmp_path: Path) -> None:
    def refuse(part: Path) -> None:
        raise OSError(errno.ENOSPC, "No space", *(name and name.replace("PART", str(part)) for name in names))

    with pytest.raises(OSError, match="No space") as caught:
        write_folder(tmp_path / "folder", refuse)
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "folder"), None)


@pytest.mark.parametrize("replaces", [False, True])
def test_a_folder_appears_whole_and_leaves_nothing_of_an_older_one(replaces: bool, tmp_path: Path) -> None:
    place = tmp_path / "folder"

    def write(folder: Path) -> None:
        (folder / "a").write_text("1")
        assert not (place / "a").exists()
        (folder / "b").write_text("2")

    if replaces:
        write_folder(place, lambda folder: (folder / "old").write_text("1") and None)
    write_folder(place, write)
    assert sorted(path.name for path in place.iterdir()) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".partial-abcabcabcabc-step-1").mkdir()
    (tmp_path / ".partial-defdefdefdef-file").write_text("half")
    names = (".partial-mine", ".partial-abcabcabcab-short", ".partial-ABCABCABCABC-x", ".partial-retired")
    kept = {"kept", ".partial-", *names}
    for name in kept:
        (tmp_path / name).write_text("whole")
        assert not is_temporary(name)
    remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == kept


def test_what_was_left_in_folders_below_goes_only_if_wanted(tmp_path: Path) -> None:
    half = tmp_path / "tickets" / ".partial-abcabcabcabc-low"
    half.mkdir(parents=True)
    (half / ".partial-defdefdefdef-ticket.json").write_text("half")
    remove_leftovers(tmp_path)
    assert half.is_dir()
    remove_leftovers(tmp_path, below=True)
    assert [p.name for p in (tmp_path / "tickets").iterdir()] == []


def test_what_is_deleted_while_a_run_s_files_are_listed_is_left_out(tmp_path: Path) -> None:
    kept, dropped = (tmp_path / "checkpoints" / name / "checkpoint.json" for name in ("step-9", "step-1"))
    write_text(kept, "{}")
    ends_at = time.monotonic() + 1

    def drop_again_and_again() -> None:
        while time.monotonic() < ends_at:
            write_text(dropped, "{}")
            shutil.rmtree(dropped.parent)

    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(drop_again_and_again)
        while not worker.done():
            assert kept.relative_to(tmp_path).as_posix() in RunFiles(tmp_path).list_keys("checkpoints")
        worker.result()
