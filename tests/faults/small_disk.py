"""What `ebdiff` does on a disk that is full or read-only; test_disk.py runs it and reads what it tells.

    unshare -rm python small_disk.py FOLDER      a tmpfs, mounted at FOLDER for this process alone
    python small_disk.py FOLDER --files          where nothing may be mounted: a limit on the size of each file

Prints a line of JSON for each thing tried.
"""

import contextlib
import io
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.append(str(Path(__file__).parents[1]))

import yaml
from run_products import products
from serial_cluster import SerialCluster
from small_runs import SMALL

from ebdiff_orchestrator.cli import app as cli
from ebdiff_orchestrator.cli import launch as launch_command
from ebdiff_orchestrator.run import launch as driver

_ROOM_KIB = (8, 300, 640, 800, 1000, 1200)  # a finished run takes about 1400
_FILE_KIB = (4, 24, 90)  # its largest files: a manifest of 10, weights of 60, a checkpoint of 200


class Tmpfs:
    """A disk of any size, read-only if wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def new(self, room_kib: int) -> None:
        self.mount(f"size={room_kib}k")

    def give_room(self) -> None:
        self.mount("remount,size=16m")

    def mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder], check=True)

    def remove(self) -> None:
        subprocess.run(["umount", self.folder], check=True)


class LimitedFiles:
    """A folder in which no file may be larger than so much."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def new(self, room_kib: int) -> None:
        self._limit(room_kib << 10)

    def give_room(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def remove(self) -> None:
        shutil.rmtree(self.folder / "run")

    def _limit(self, most_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))


def main(folder: Path, files_only: bool) -> None:
    plan, whole = folder.parent / "plan.yaml", folder.parent / "whole"
    plan.write_text(yaml.safe_dump({**SMALL, "workers": {"cache_dir": str(folder.parent / "cache")}}))
    assert ebdiff("launch", plan, "--run-dir", whole)[0] == 0
    expected = products(whole)
    for room_kib in _FILE_KIB if files_only else _ROOM_KIB:
        _fill(LimitedFiles(folder) if files_only else Tmpfs(folder), plan, room_kib, expected)
    if not files_only:
        _make_read_only(Tmpfs(folder), plan, expected)


def ebdiff(*arguments: object) -> tuple[int, str]:
    """Exit code and output of the command line, without Ray."""
    output, launch = io.StringIO(), driver.launch

    def launch_here(*arguments: Any, **options: Any) -> Any:
        return launch(*arguments, **{**options, "executor": SerialCluster()})

    with (
        patch.object(launch_command, "_start_ray_early", lambda *_: None),
        patch.object(driver, "launch", launch_here),
        patch.object(sys, "argv", ["ebdiff", *map(str, arguments)]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        return cli._guarded(), output.getvalue()


def _fill(disk: Tmpfs | LimitedFiles, plan: Path, room_kib: int, expected: dict[str, str]) -> None:
    """Launch where the disk gets full, then go on where there is room."""
    run_dir = disk.folder / "run"
    disk.new(room_kib)
    code, output = ebdiff("launch", plan, "--run-dir", run_dir)
    disk.give_room()
    again, _ = ebdiff("launch", plan, "--run-dir", run_dir)
    _tell("full", code, output, again == 0 and products(run_dir) == expected)
    disk.remove()


def _make_read_only(disk: Tmpfs, plan: Path, expected: dict[str, str]) -> None:
    """Commands on a read-only disk: where a run is to be made, to be gone on with, and to be looked at."""
    run_dir = disk.folder / "run"
    disk.new(16 << 10)
    assert ebdiff("launch", plan, "--run-dir", run_dir)[0] == 0
    (run_dir / "samples" / "grid.png").unlink()  # there is something to be done
    before = _bytes_of(run_dir)
    disk.mount("remount,ro")
    for arguments in (
        ("launch", plan, "--run-dir", disk.folder / "new"),
        ("resume", run_dir),
        ("sample", run_dir, "-n", 1, "--out", disk.folder / "images"),
        ("status", run_dir, "--json"),
    ):
        code, output = ebdiff(*arguments)
        _tell(str(arguments[0]), code, output, _bytes_of(run_dir) == before)
    disk.mount("remount,rw")
    code, output = ebdiff("resume", run_dir)
    _tell("resume on a disk that can be written again", code, output, products(run_dir) == expected)
    disk.remove()


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _tell(what: str, code: int, output: str, equal: bool) -> None:
    print(json.dumps({"what": what, "code": code, "output": output, "equal": equal}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--files" in sys.argv)
