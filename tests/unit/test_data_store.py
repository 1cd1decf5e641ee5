"""A store is built once, whole, and only as readable as the plan asks."""

import json
import os
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawing_files import scribbles, write_lines
from forked import ForkedProcess
from PIL import Image
from processes import wait_until

import region_workers.data.build as build
import region_workers.data.parallel as parallel
from region_workers.data.decode import Payload, Transform
from region_workers.data.drawing_store import ensure_data
from region_workers.data.parallel import Decoded, DecodeProcess
from region_workers.data.store import ImageStore, ensure_store
from region_workers.storage.locks import Report, build_lock
from region_workers.storage.places import cache_dir_of
from schemas.data import DrawingsPlan
from schemas.errors import PlanError, RunFailed
from schemas.plan import DataPlan

# Builds the store of a folder; each image decoded is announced and takes 20 ms, so that builders overlap. A task is 5
# images, every task is worth a part, and after a given number of images the builder waits to be killed.
BUILDER = """
import sys, time
from pathlib import Path
import region_workers.data.decode as decode
import region_workers.data.parallel as parallel
import region_workers.data.build as build
from region_workers.data.store import ensure_store
from schemas.plan import DataPlan

plain, count = decode.decode, 0
def slow(*arguments):
    global count
    count += 1
    if count > int(sys.argv[3]):
        time.sleep(600)
    print("decoded", flush=True)
    time.sleep(0.02)
    return plain(*arguments)
decode.decode = slow
parallel._ALONE_S, parallel._TASK_IMAGES, build._PART_S = 1e9, 5, 0.0
print("digest", ensure_store(DataPlan.model_validate_json(sys.argv[1]), Path(sys.argv[2])).digest, flush=True)
"""


def make_images(folder: Path, count: int, broken: int = 0) -> DataPlan:
    folder.mkdir()
    for number in range(count):
        Image.new("L", (8, 8), number).save(folder / f"{number:03}.png")
    for number in range(broken):
        (folder / f"broken-{number}.png").write_bytes(b"no image")
    return DataPlan(path=str(folder))


def start_builder(plan: DataPlan, cache: Path, stop_after: int = 1000) -> ForkedProcess:
    return ForkedProcess("-c", BUILDER, plan.model_dump_json(), cache, str(stop_after))


def kill_a_build(plan: DataPlan, cache: Path, images: int, part: str) -> Path:
    """Let a builder decode some images, kill it once a part is on the disk; returns the store's folder."""
    builder = start_builder(plan, cache, stop_after=images)
    parts = wait_until(lambda: list((cache / "images").glob(f"*/parts/{part}")), "a part", builder)
    builder.send_signal(signal.SIGKILL)
    builder.communicate(timeout=60)
    return parts[0].parents[1]


def finish_build(plan: DataPlan, cache: Path) -> tuple[int, str]:
    """How many images another builder decodes, and the digest of the store that it finishes."""
    lines = start_builder(plan, cache).communicate(timeout=60)[0].splitlines()
    return lines.count("decoded"), lines[-1].removeprefix("digest ")


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
    assert np.array_equal(opened.array, built.array)


def test_the_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    first = ensure_store(make_images(tmp_path / "a", 5), tmp_path)
    same = ensure_store(make_images(tmp_path / "b", 5), tmp_path)
    other = ensure_store(make_images(tmp_path / "c", 6), tmp_path)
    assert first.folder != same.folder
    assert first.digest == same.digest
    assert first.digest != other.digest


def test_another_transform_is_another_store(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 3)
    assert ensure_store(plan, tmp_path).array.shape == (3, 8, 8, 1)
    assert ensure_store(plan.model_copy(update={"channels": 3}), tmp_path).array.shape == (3, 8, 8, 3)
    assert ensure_store(plan.model_copy(update={"resolution": 4}), tmp_path).array.shape == (3, 4, 4, 1)


def test_a_changed_source_is_another_store(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 3)
    before = ensure_store(plan, tmp_path)
    Image.new("L", (8, 8), 200).save(tmp_path / "data" / "001.png")
    after = ensure_store(plan, tmp_path)
    assert after.folder != before.folder
    assert after.array[1].max() == 200


def test_unreadable_images_within_the_limit_are_left_out_and_named(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 18, broken=2).model_copy(update={"max_unreadable": 0.1})
    store = ensure_store(plan, tmp_path)
    assert store.array[:, 0, 0, 0].tolist() == list(range(18))
    info = json.loads((store.folder / "store.json").read_text())
    assert info["unreadable_names"] == ["broken-0.png", "broken-1.png"]


def test_unreadable_images_above_the_limit_stop_and_leave_nothing(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 93, broken=7)
    with pytest.raises(PlanError, match=r"7 of the .*broken-0\.png .*and 2 more.*data\.max_unreadable"):
        ensure_store(plan, tmp_path)
    assert store_folders(tmp_path) == []


def test_a_store_built_under_a_higher_limit_does_not_get_round_a_lower_one(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 8, broken=2)
    ensure_store(plan.model_copy(update={"max_unreadable": 0.5}), tmp_path)
    with pytest.raises(PlanError, match=r"broken-0\.png"):
        ensure_store(plan, tmp_path)


def test_a_changed_pixel_is_found_when_it_is_read(tmp_path: Path) -> None:
    store = ensure_store(make_images(tmp_path / "data", 5), tmp_path)
    store.piece(0, 5)
    with (store.folder / "samples.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    ImageStore(store.folder).piece(0, 4)
    with pytest.raises(RunFailed, match="row 4 is not what was written"):
        ImageStore(store.folder).piece(0, 5)


def test_processes_that_ask_at_once_build_once(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 60)
    builders = [start_builder(plan, tmp_path) for _ in range(3)]
    outputs = [builder.communicate(timeout=120)[0].split("\n") for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert sorted(lines.count("decoded") for lines in outputs) == [0, 0, 60]
    assert len({line for lines in outputs for line in lines if line.startswith("digest")}) == 1


def test_a_killed_builder_leaves_no_store_and_the_next_one_goes_on(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 60)
    folder = kill_a_build(plan, tmp_path / "killed", images=40, part="00002.json")
    with pytest.raises(RunFailed, match="no whole image store"):
        ImageStore(folder)
    decoded, digest = finish_build(plan, tmp_path / "killed")
    assert 20 <= decoded <= 45  # three parts hold at least 15 images
    assert digest == ensure_store(plan, tmp_path / "whole").digest
    store = ensure_store(plan, tmp_path / "killed")
    assert store.array[:, 0, 0, 0].tolist() == list(range(60))
    store.piece(0, 60)
    assert sorted(path.name for path in folder.iterdir()) == ["checksums.npy", "samples.npy", "store.json"]


def test_a_part_whose_pixels_have_changed_is_decoded_again(tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 60)
    folder = kill_a_build(plan, tmp_path / "killed", images=40, part="00003.json")
    first = json.loads((folder / "parts" / "00000.json").read_text())["images"]
    with (folder / "samples.npy").open("r+b") as file:
        file.seek(128 + 64 * first)  # behind the .npy header and the first part: 8 x 8 pixels an image
        file.write(b"\xff")
    decoded, digest = finish_build(plan, tmp_path / "killed")
    assert decoded == 60 - first
    assert digest == ensure_store(plan, tmp_path / "whole").digest


def test_parts_behind_a_damaged_one_are_not_taken_for_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    make_images(tmp_path / "data/ant", 40)
    plan = DataPlan(path=str(tmp_path / "data"), label_column="label")
    whole = ensure_store(plan, tmp_path / "whole")
    monkeypatch.setattr(parallel, "_ALONE_S", 1e9)
    due = {5: [True] * 40, 4: [True] + [False] * 40}  # by the images of a task: a part after each, and after one alone
    for images in due:
        monkeypatch.setattr(parallel, "_TASK_IMAGES", images)
        monkeypatch.setattr(build.PartLog, "is_due", lambda _, images=images: due[images].pop(0))
        with pytest.raises(InterruptedError):
            ensure_store(plan, tmp_path / "killed", _interrupted_at(25))
        (folder,) = store_folders(tmp_path / "killed")
        if images == 5:
            (folder / "parts/00001.json").write_text("")
    monkeypatch.undo()
    assert ensure_store(plan, tmp_path / "killed").info == whole.info


def _interrupted_at(images: int) -> Report:
    def report(done: int, _: int) -> None:
        if done >= images:
            raise InterruptedError

    return report


def test_a_resumed_build_keeps_the_labels_and_the_unreadable(tmp_path: Path) -> None:
    for name in ("zebra", "ant"):
        make_images(tmp_path / name, 24)
    (tmp_path / "data").mkdir()
    for name in ("zebra", "ant"):
        (tmp_path / name).rename(tmp_path / "data" / name)
    (tmp_path / "data" / "ant" / "000.png").write_bytes(b"no image")
    plan = DataPlan(path=str(tmp_path / "data"), label_column="label", max_unreadable=0.1)
    whole = ensure_store(plan, tmp_path / "whole")
    kill_a_build(plan, tmp_path / "killed", images=40, part="00002.json")
    store = ensure_store(plan, tmp_path / "killed")
    assert store.labels is not None
    assert store.labels.tolist() == [0] * 23 + [1] * 24
    assert store.info == whole.info
    assert store.info.unreadable_names == ("ant/000.png",)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_decoding_in_other_processes_gives_the_same_store(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_images(tmp_path / "data", 150, broken=3).model_copy(update={"max_unreadable": 0.1})
    if kind == "parquet":
        files = [path.read_bytes() for path in sorted((tmp_path / "data").iterdir())]
        pq.write_table(pa.table({"image": [None, *files]}), tmp_path / "images.parquet")
        plan = plan.model_copy(update={"path": str(tmp_path / "images.parquet")})
    monkeypatch.setattr(parallel, "_ALONE_S", 1e9)
    alone = ensure_store(plan, tmp_path / "alone")
    monkeypatch.setattr(parallel, "_ALONE_S", 0.0)
    together = ensure_store(plan, tmp_path / "together")
    assert len(together) == 150
    assert together.info == alone.info
    assert np.array_equal(together.array, alone.array)


def test_a_decoding_process_that_dies_is_an_error(tmp_path: Path) -> None:
    with DecodeProcess(Transform(8, 1), most_files=2) as process:
        process._process.kill()
        with pytest.raises(ChildProcessError, match="exit status -9"):
            process.decode([b"", b""])


def test_a_build_that_loses_a_decoding_process_names_the_images_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mortal(DecodeProcess):
        def decode(self, payloads: Sequence[Payload]) -> Decoded:
            if str(payloads[0]).endswith("050.png"):
                self._process.kill()
            return super().decode(payloads)

    plan = make_images(tmp_path / "data", 60)
    monkeypatch.setattr(parallel, "_ALONE_S", 0.0)
    monkeypatch.setattr(parallel, "_TASK_IMAGES", 5)
    monkeypatch.setattr(build, "_PART_S", 0.0)
    monkeypatch.setattr(parallel, "DecodeProcess", Mortal)
    with pytest.raises(ChildProcessError, match=r"-9.*images 050\.png to 054\.png.*Launch again"):
        ensure_store(plan, tmp_path)
    (folder,) = store_folders(tmp_path)
    assert list((folder / "parts").iterdir())
    monkeypatch.undo()
    reports: list[int] = []
    store = ensure_store(plan, tmp_path, lambda done, _: reports.append(done))
    assert 0 < reports[0] < 60  # what the parts hold
    assert store.array[:, 0, 0, 0].tolist() == list(range(60))


def test_the_wait_for_a_builder_without_progress_ends_and_says_so(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    seen: list[tuple[int, int]] = []
    with build_lock(lock, lambda *_: None, 1, "image") as report:
        time.sleep(1.1)
        report(3, 10)
        with (
            pytest.raises(RunFailed, match=rf"process {os.getpid()} on .*without any progress.*x\.lock"),
            build_lock(lock, lambda done, total: seen.append((done, total)), 0.3, "image"),
        ):
            pass
    with build_lock(lock, lambda *_: None, 0.3, "image"):
        pass


@pytest.mark.parametrize("kind", ["images", "drawings"])
def test_a_disk_that_gets_full_is_named_by_the_store_that_was_to_be_on_it(kind: str, tmp_path: Path) -> None:
    plan = make_images(tmp_path / "data", 100)
    if kind == "drawings":
        plan = DataPlan(path=str(write_lines(tmp_path / "a.ndjson", scribbles(100))), drawings=DrawingsPlan())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}/{kind}/"):
            ensure_data(plan, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_unusable_cache_is_a_problem_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"workers\.cache_dir"):
        ensure_store(DataPlan(), tmp_path / "file")


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBDIFF_CACHE", str(tmp_path))
    assert cache_dir_of() == tmp_path
    monkeypatch.delenv("EBDIFF_CACHE")
    assert cache_dir_of() == Path.home() / ".cache" / "ebdiff"
