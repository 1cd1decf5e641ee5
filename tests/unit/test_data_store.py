"""A store is built once, whole, and only as readable as the plan asks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from region_workers.data.lock import build_lock
from region_workers.data.store import ImageStore, default_cache_dir, ensure_store
from schemas.errors import RunFailed
from schemas.plan import DataPlan

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10-train.parquet"

# Builds the store of a folder; each image decoded is announced and takes 20 ms, so that builders overlap.
BUILDER = """
import sys, time
from pathlib import Path
import region_workers.data.parallel as parallel
from region_workers.data.store import ensure_store
from schemas.plan import DataPlan

plain = parallel.decode
def slow(*arguments):
    print("decoded", flush=True)
    time.sleep(0.02)
    return plain(*arguments)
parallel.decode = slow
print("digest", ensure_store(DataPlan(path=sys.argv[1]), Path(sys.argv[2])).digest, flush=True)
"""


def make_images(folder: Path, count: int, broken: int = 0) -> DataPlan:
    folder.mkdir()
    for number in range(count):
        Image.new("L", (8, 8), number).save(folder / f"{number:03}.png")
    for number in range(broken):
        (folder / f"broken-{number}.png").write_bytes(b"no image")
    return DataPlan(path=str(folder))


def start_builder(plan: DataPlan, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, plan.path, str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def store_folders(cache: Path) -> list[Path]:
    return [path for path in (cache / "images").iterdir() if path.is_dir()]


def test_a_store_is_opened_and_not_built_again(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 10)
    reports: list[tuple[int, int]] = []
    built = ensure_store(plan, tmp_path, lambda done, total: reports.append((done, total)))
    assert reports[-1] == (10, 10)
    reports.clear()
    opened = ensure_store(plan, tmp_path, lambda done, total: reports.append((done, total)))
    assert not reports
    assert opened.digest == built.digest
    assert len(opened) == 10
    assert np.array_equal(opened.images, built.images)


def test_the_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    first = ensure_store(make_images(tmp_path / "a", 5), tmp_path)
    same = ensure_store(make_images(tmp_path / "b", 5), tmp_path)
    other = ensure_store(make_images(tmp_path / "c", 6), tmp_path)
    assert first.folder != same.folder
    assert first.digest == same.digest
    assert first.digest != other.digest


def test_another_transform_is_another_store(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 3)
    assert ensure_store(plan, tmp_path).images.shape == (3, 8, 8, 1)
    assert ensure_store(plan.model_copy(update={"channels": 3}), tmp_path).images.shape == (3, 8, 8, 3)
    assert ensure_store(plan.model_copy(update={"resolution": 4}), tmp_path).images.shape == (3, 4, 4, 1)


def test_a_changed_source_is_another_store(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 3)
    before = ensure_store(plan, tmp_path)
    Image.new("L", (8, 8), 200).save(tmp_path / "data" / "001.png")
    after = ensure_store(plan, tmp_path)
    assert after.folder != before.folder
    assert after.images[1].max() == 200


def test_unreadable_images_within_the_limit_are_left_out_and_named(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 18, broken=2).model_copy(update={"max_unreadable": 0.1})
    store = ensure_store(plan, tmp_path)
    assert store.unreadable == 2
    assert store.images[:, 0, 0, 0].tolist() == list(range(18))
    info = json.loads((store.folder / "store.json").read_text())
    assert info["unreadable_names"] == ["broken-0.png", "broken-1.png"]


def test_unreadable_images_above_the_limit_stop_and_leave_nothing(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 93, broken=7)
    with pytest.raises(RunFailed, match=r"7 of the .*broken-0\.png .*and 2 more.*data\.max_unreadable"):
        ensure_store(plan, tmp_path)
    assert store_folders(tmp_path) == []


def test_a_store_built_under_a_higher_limit_does_not_get_round_a_lower_one(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 8, broken=2)
    ensure_store(plan.model_copy(update={"max_unreadable": 0.5}), tmp_path)
    with pytest.raises(RunFailed, match=r"broken-0\.png"):
        ensure_store(plan, tmp_path)


def test_a_store_cut_short_is_refused_and_built_anew(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 5)
    store = ensure_store(plan, tmp_path)
    pixels = store.folder / "pixels.npy"
    pixels.write_bytes(pixels.read_bytes()[:-1])
    with pytest.raises(RunFailed, match="no whole image store"):
        ImageStore.open(store.folder)
    assert ensure_store(plan, tmp_path).digest == store.digest


def test_verify_finds_a_changed_pixel(tmp_path: Path) -> None:
    store = ensure_store(make_images(tmp_path / "data", 5), tmp_path)
    store.verify()
    with (store.folder / "pixels.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(RunFailed, match="have changed"):
        ImageStore.open(store.folder).verify()


def test_processes_that_ask_at_once_build_once(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 60)
    builders = [start_builder(plan, tmp_path) for _ in range(3)]
    outputs = [builder.communicate(timeout=120)[0].split("\n") for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert sorted(lines.count("decoded") for lines in outputs) == [0, 0, 60]
    assert len({line for lines in outputs for line in lines if line.startswith("digest")}) == 1


def test_a_killed_builder_leaves_no_store_and_the_next_one_builds(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 60)
    builder = start_builder(plan, tmp_path)
    assert builder.stdout is not None
    assert builder.stdout.readline() == "decoded\n"
    builder.send_signal(signal.SIGKILL)
    builder.communicate(timeout=60)
    (leftover,) = store_folders(tmp_path)
    assert leftover.name.startswith(".partial-")
    store = ensure_store(plan, tmp_path)
    assert len(store) == 60
    assert store_folders(tmp_path) == [store.folder]


def test_the_wait_for_a_builder_without_progress_ends_and_says_so(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    seen: list[tuple[int, int]] = []
    with build_lock(lock, lambda *_: None, 1) as report:
        time.sleep(1.1)
        report(3, 10)
        with (
            pytest.raises(RunFailed, match=rf"process {os.getpid()} on .*without any progress.*x\.lock"),
            build_lock(lock, lambda done, total: seen.append((done, total)), stall_limit_s=0.3),
        ):
            pass
    with build_lock(lock, lambda *_: None, 0.3):
        pass


def test_an_unusable_cache_is_a_problem_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"workers\.cache_dir"):
        ensure_store(DataPlan(), tmp_path / "file")


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBDIFF_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("EBDIFF_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "ebdiff"


@pytest.mark.skipif(not CIFAR10.exists(), reason="no CIFAR-10 beside the repository")
def test_cifar10_is_decoded(tmp_path: Path) -> None:
    store = ensure_store(DataPlan(path=str(CIFAR10), resolution=32, channels=3), tmp_path)
    assert store.images.shape == (50_000, 32, 32, 3)
    assert store.unreadable == 0
    mean_of_channels = store.images[:5000].mean(axis=(0, 1, 2)) / 255
    assert 0.35 < mean_of_channels.min() < mean_of_channels.max() < 0.6
