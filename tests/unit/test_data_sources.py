"""What `data.path` may name, and how the image column and the split are found."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import png, serve_from_hub

from region_workers.data.sources import open_source
from region_workers.data.store import ensure_store
from schemas.errors import PlanError
from schemas.plan import DataPlan

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(path: Path, greys: list[int], columns: tuple[str, ...] = ("image",)) -> Path:
    rows = [{"bytes": png(grey), "path": f"{grey}.png"} for grey in greys]
    table = {name: pa.array(rows, STRUCT) for name in columns} | {"label": pa.array([0] * len(greys))}
    pq.write_table(pa.table(table), path, row_group_size=3)
    return path


def greys_of(plan: DataPlan, cache: Path) -> list[int]:
    return [int(image[0, 0, 0]) for image in ensure_store(plan, cache).array]


def test_the_digits_need_no_file(tmp_path: Path) -> None:
    store = ensure_store(DataPlan(), tmp_path)
    assert store.array.shape == (1797, 8, 8, 1)
    assert store.array.max() == 255
    assert store.array[0, 0, :4, 0].tolist() == [0, 0, 80, 207]  # 0, 0, 5, 13 of 16


def test_the_digits_are_resized(tmp_path: Path) -> None:
    assert ensure_store(DataPlan(resolution=16, channels=3), tmp_path).array.shape == (1797, 16, 16, 3)


def test_a_parquet_struct_without_metadata_is_read_in_order(tmp_path: Path) -> None:
    greys = list(range(0, 250, 3))
    path = write_parquet(tmp_path / "images.parquet", greys)
    assert greys_of(DataPlan(path=str(path)), tmp_path) == greys


def test_a_table_in_one_piece_is_read_a_little_at_a_time(tmp_path: Path) -> None:
    files = [bytes([grey]) * 2_000 for grey in range(256)] * 80
    path = tmp_path / "images.parquet"
    pq.write_table(pa.table({"image": files}), path, compression="none", use_dictionary=False)
    assert path.stat().st_size > 40_000_000
    before = pa.total_allocated_bytes()
    for number, item in enumerate(open_source(DataPlan(path=str(path)), tmp_path).items()):
        assert item.payload == files[number]
        assert pa.total_allocated_bytes() - before < 20_000_000


def test_a_binary_column_is_a_column_of_images(tmp_path: Path) -> None:
    pq.write_table(pa.table({"png": pa.array([png(5), png(6)])}), tmp_path / "images.parquet")
    assert greys_of(DataPlan(path=str(tmp_path / "images.parquet")), tmp_path) == [5, 6]


def test_a_folder_of_parquet_files_is_read_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_parquet(folder / "b.parquet", [3, 4])
    write_parquet(folder / "a.parquet", [1, 2])
    assert greys_of(DataPlan(path=str(folder)), tmp_path) == [1, 2, 3, 4]


def test_a_folder_of_images_is_read_recursively_with_what_it_links_to_and_without_hidden_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, grey in {"b/2.png": 2, "a/1.PNG": 1, "c.png": 3, "._c.png": 9, ".cache/x.png": 9}.items():
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(grey))
    (tmp_path / "data" / "notes.txt").write_text("no image")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "4.png").write_bytes(png(4))
    (tmp_path / "data" / "d").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "b" / "endless").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert greys_of(DataPlan(path="data"), tmp_path / "cache") == [1, 2, 3, 4]


def test_names_that_are_no_utf8_are_written_with_their_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "data" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    (folder / "thé.png").write_bytes(png(1))
    (folder / os.fsdecode(b"th\xe9.png")).write_bytes(b"no image")
    plan = DataPlan(path=str(tmp_path / "data"), label_column="label", max_unreadable=0.5)
    info = ensure_store(plan, tmp_path / "cache").info
    assert info.unreadable_names == ("caf\\xe9/th\\xe9.png",)
    assert info.class_names == ("caf\\xe9",)


def test_two_candidate_columns_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "pairs.parquet", [1, 2], ("photo", "mask"))
    with pytest.raises(PlanError, match=r"data\.image_column.*photo, mask"):
        ensure_store(DataPlan(path=str(path)), tmp_path)
    assert greys_of(DataPlan(path=str(path), image_column="mask"), tmp_path) == [1, 2]


def test_a_column_marked_as_images_is_preferred(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "pairs.parquet", [1, 2], ("photo", "mask"))
    mark = b'{"info": {"features": {"photo": {"_type": "Image"}}}}'
    table = pq.read_table(path).replace_schema_metadata({b"huggingface": mark})
    pq.write_table(table, path)
    assert open_source(DataPlan(path=str(path)), tmp_path).identity()["column"] == "photo"


def test_only_the_files_of_the_split_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_parquet(folder / "train-00000-of-00001.parquet", [1, 2])
    write_parquet(folder / "test-00000-of-00001.parquet", [3])
    assert greys_of(DataPlan(path=str(folder)), tmp_path) == [1, 2]
    assert greys_of(DataPlan(path=str(folder), split="test"), tmp_path) == [3]
    with pytest.raises(PlanError, match=r"data\.split = validation"):
        ensure_store(DataPlan(path=str(folder), split="validation"), tmp_path)


def test_a_hub_that_does_not_answer_is_a_bad_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", _no_network)
    with pytest.raises(PlanError, match=r"data\.path = some/images: .*no network"):
        ensure_store(DataPlan(path="some/images"), tmp_path)


def test_a_hub_data_set_is_streamed_and_found_again_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    path = write_parquet(tmp_path / "images.parquet", [7, 8, 9])
    stream = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", streaming=True, cache_dir=str(tmp_path / "datasets")
    )
    plan = DataPlan(path=serve_from_hub(stream, monkeypatch))
    assert greys_of(plan, tmp_path) == [7, 8, 9]
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", _no_network)
    monkeypatch.setattr("region_workers.data.hub._load", _no_network)
    assert greys_of(plan, tmp_path) == [7, 8, 9]


def test_a_changed_source_has_another_identity(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "images.parquet", [1, 2])
    plan = DataPlan(path=str(path))
    before = open_source(plan, tmp_path).identity()
    assert open_source(plan, tmp_path).identity() == before
    os.utime(path, ns=(0, 0))
    assert open_source(plan, tmp_path).identity() != before


@pytest.mark.parametrize("kind", ["digits", "one table", "tables", "folder", "hub"])
def test_a_source_gives_its_images_from_any_one_on(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    folder = tmp_path / "data"
    folder.mkdir()
    path = str(folder)
    if kind == "digits":
        path = DataPlan().path
    elif kind == "folder":
        for grey in range(10):
            (folder / f"{grey}.png").write_bytes(png(grey))
    else:
        write_parquet(folder / "a.parquet", list(range(7)))  # row groups of three
        path = str(folder / "a.parquet")
    if kind == "tables":
        write_parquet(folder / "b.parquet", [7, 8])
        path = str(folder)
    if kind == "hub":
        stream = datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path / "datasets")).to_iterable_dataset()
        path = serve_from_hub(stream, monkeypatch)
    source = open_source(DataPlan(path=path), tmp_path)
    whole = list(source.items())
    assert len(whole) >= 7
    for start in (1, 3, 4, 6, 7, 8, len(whole)):
        assert list(source.items(start)) == whole[start:]


def _no_network(*_: Any, **__: Any) -> Any:
    raise ConnectionError("no network")
