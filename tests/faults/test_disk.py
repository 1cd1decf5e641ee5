"""A full or read-only disk: named with what to do, nothing good lost, and gone on with to the same bits."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_SCRIPT = Path(__file__).parent / "small_disk.py"


def _may_mount(folder: Path) -> bool:
    """Whether a process here may mount a disk of its own."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What happened on a disk that got full at different points, and on one that was read-only."""
    disk = tmp_path_factory.mktemp("small") / "disk"
    disk.mkdir()
    mounts = _may_mount(disk)
    command = [*(["unshare", "-rm"] if mounts else []), sys.executable, str(_SCRIPT), str(disk)]
    command += [] if mounts else ["--files"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_full_disk_is_named_and_once_there_is_room_the_run_ends_in_the_same_bits(told: list[dict[str, Any]]) -> None:
    full = [one for one in told if one["what"] == "full"]
    assert len(full) >= 3
    for one in full:
        assert one["code"] == 1, one
        assert "disk/run" in one["output"].split("the disk is full")[0].splitlines()[-1], one
        assert "Free some space there; what was saved is whole" in one["output"]
        assert "Traceback" not in one["output"]
        assert one["equal"], one


def test_a_read_only_folder_is_refused_and_left_alone(told: list[dict[str, Any]]) -> None:
    others = {one["what"]: one for one in told if one["what"] != "full"}
    if not others:
        pytest.skip("nothing may be mounted here, and root writes in any folder")
    for what in ("launch", "resume", "sample"):
        assert others[what]["code"] == 2, others[what]
        assert "Read-only file system" in others[what]["output"]
        assert "Traceback" not in others[what]["output"]
    assert others["status"]["code"] == 0
    assert all(one["equal"] for one in others.values()), others
