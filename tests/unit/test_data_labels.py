"""Labels come with the images from every kind of source, numbered from 0 and aligned with what is readable."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from listener import Listener
from pictures import png, save_images, serve_from_hub
from PIL import Image

from ebdiff_orchestrator.plans.load import plan_from_values
from ebdiff_orchestrator.run.launch import decode_data
from ebdiff_orchestrator.run.resolve import ResolvedPlan
from region_workers.data.store import ImageStore, ensure_store, store_key
from schemas.errors import PlanError
from schemas.plan import CropPlan, DataPlan


def table(path: Path, labels: pa.Array, column: str = "label") -> DataPlan:
    images = [{"bytes": png(grey), "path": None} for grey in range(len(labels))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({column: labels, "image": pa.array(images, kind)}), path, row_group_size=3)
    return DataPlan(path=str(path), label_column=column)


def class_folders(root: Path, files: dict[str, int]) -> DataPlan:
    for name, grey in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(grey))
    return DataPlan(path=str(root), label_column="label")


def labels_of(store: ImageStore) -> list[int]:
    assert store.labels is not None
    assert store.labels.dtype == np.int64
    return [int(label) for label in store.labels]


@pytest.mark.parametrize(
    "labels", [pa.array([4, 0, 2, 2], pa.uint8()), pa.array([True, False])], ids=["numbers", "booleans"]
)
def test_whole_numbers_stay_as_they_are(labels: pa.Array, tmp_path: Path) -> None:
    store = ensure_store(table(tmp_path / "a.parquet", labels), tmp_path)
    assert labels_of(store) == [int(label) for label in labels.to_pylist()]
    assert (store.info.num_classes, store.info.class_names) == (max(labels_of(store)) + 1, None)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_strings_are_numbered_in_the_order_of_the_alphabet(kind: pa.DataType, tmp_path: Path) -> None:
    labels = pa.array(["dog", "cat", "emu", "cat", "dog"], pa.string()).cast(kind)
    store = ensure_store(table(tmp_path / "a.parquet", labels, "kind"), tmp_path)
    assert labels_of(store) == [1, 0, 2, 0, 1]
    assert (store.info.num_classes, store.info.class_names) == (3, ("cat", "dog", "emu"))


def test_a_launch_tells_the_classes_by_number(tmp_path: Path) -> None:
    class_folders(tmp_path / "photos", {f"{name}/a.png": grey for grey, name in enumerate(["dog", "cat", "emu"])})
    data = {"path": str(tmp_path / "photos"), "label_column": "label"}
    rest = {"training": {"batch_size": 3}, "workers": {"cache_dir": str(tmp_path / "cache"), "processes": 1}}
    decode_data(ResolvedPlan(plan_from_values({"data": data, **rest}), None), said := Listener())
    assert said.said == ["Classes: 0 cat, 1 dog, 2 emu."]


def test_the_names_that_the_datasets_library_noted_are_kept(tmp_path: Path) -> None:
    plan = table(tmp_path / "a.parquet", pa.array([1, 0]))
    features = {"image": {"_type": "Image"}, "label": {"names": ["ant", "bee", "cow"], "_type": "ClassLabel"}}
    note = json.dumps({"info": {"features": features}}).encode()
    noted = pq.read_table(plan.path).replace_schema_metadata({b"huggingface": note})
    pq.write_table(noted, plan.path)
    store = ensure_store(plan, tmp_path)
    assert labels_of(store) == [1, 0]
    assert (store.info.num_classes, store.info.class_names) == (3, ("ant", "bee", "cow"))


def test_a_label_may_lie_in_a_struct(tmp_path: Path) -> None:
    rows = pa.array([{"id": 7, "class": "b"}, {"id": 8, "class": "a"}])
    table(tmp_path / "a.parquet", rows, "meta")
    store = ensure_store(DataPlan(path=str(tmp_path / "a.parquet"), label_column="meta.class"), tmp_path)
    assert labels_of(store) == [1, 0]


def test_the_folders_at_the_top_are_the_classes(tmp_path: Path) -> None:
    files = {"dog/1.png": 1, "cat/deep/2.png": 2, "cat/3.png": 3, "ant/4.png": 4}
    store = ensure_store(class_folders(tmp_path / "data", files), tmp_path)
    assert store.array[:, 0, 0, 0].tolist() == [4, 3, 2, 1]
    assert labels_of(store) == [0, 1, 1, 2]
    assert store.info.class_names == ("ant", "cat", "dog")


@pytest.mark.parametrize("other", [{}, {"test/cat/9.png": 9}], ids=["one split", "two splits"])
def test_the_folder_of_a_split_is_no_class(other: dict[str, int], tmp_path: Path) -> None:
    plan = class_folders(tmp_path / "data", {"train/dog/1.png": 1, "train/cat/2.png": 2} | other)
    store = ensure_store(plan, tmp_path)
    assert labels_of(store) == [0, 1]
    assert store.info.class_names == ("cat", "dog")


def test_the_digits_know_what_they_show(tmp_path: Path) -> None:
    store = ensure_store(DataPlan(label_column="label"), tmp_path)
    assert labels_of(store)[:12] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert store.info.num_classes == 10


def test_labels_stay_beside_their_images_when_some_are_unreadable(tmp_path: Path) -> None:
    plan = class_folders(tmp_path / "data", {"a/1.png": 1, "b/2.png": 2, "b/4.png": 4, "c/5.png": 5})
    (tmp_path / "data" / "b" / "3.png").write_bytes(b"no image")
    store = ensure_store(plan.model_copy(update={"max_unreadable": 0.5}), tmp_path)
    assert store.array[:, 0, 0, 0].tolist() == [1, 2, 4, 5]
    assert labels_of(store) == [0, 1, 1, 2]


def test_a_hub_data_set_gives_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    names = ["ant", "bee", "cow"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [{"bytes": png(grey), "path": None} for grey in (5, 6)], "label": [2, 1]}
    stream = datasets.Dataset.from_dict(rows, features=features).to_iterable_dataset()
    path = serve_from_hub(stream, monkeypatch)
    store = ensure_store(DataPlan(path=path, label_column="label"), tmp_path)
    assert labels_of(store) == [2, 1]
    assert store.info.class_names == ("ant", "bee", "cow")
    with pytest.raises(PlanError, match=r"data\.label_column = kind: .*it is not there.*label"):
        ensure_store(DataPlan(path=path, label_column="kind"), tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array([0, None, 1]), r"a\.parquet row 1 has no label"),
        (pa.array(["a", "b", None]), r"a\.parquet row 2 has no label"),
        (pa.array([0, 1, -1]), r"a\.parquet row 2 has the label -1"),
        (pa.array([0.0, 1.0]), r"it holds double. No column holds labels"),
    ],
)
def test_what_is_no_label_is_refused(labels: pa.Array, message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"data\.label_column = label: .*" + message):
        ensure_store(table(tmp_path / "a.parquet", labels), tmp_path)


def test_the_digest_is_of_the_labels_too(tmp_path: Path) -> None:
    first = ensure_store(table(tmp_path / "a.parquet", pa.array([0, 1])), tmp_path)
    other = ensure_store(table(tmp_path / "b.parquet", pa.array([1, 0])), tmp_path)
    bare = ensure_store(DataPlan(path=str(tmp_path / "a.parquet")), tmp_path)
    assert len({first.digest, other.digest, bare.digest}) == 3


def test_what_is_done_to_an_image_is_in_the_key_of_its_store() -> None:
    plan = DataPlan()
    changes: list[dict[str, Any]] = [
        {"label_column": "label"},
        {"interpolation": "bilinear"},
        {"crop": CropPlan(center_x=4, center_y=4, size=8)},
        {"crop": CropPlan(center_x=4, center_y=4, size=6)},
    ]
    assert len({store_key({}, plan.model_copy(update=change)) for change in [{}, *changes]}) == 5


def test_a_crop_reaches_the_decoders_and_is_told_where_it_does_not_fit(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "celeba", [(178, 218)] * 3, "jpg")
    crop = CropPlan(center_x=89, center_y=121, size=128)
    plan = DataPlan(path=str(folder), crop=crop, interpolation="bilinear", resolution=64, channels=3)
    store = ensure_store(plan, tmp_path)
    with Image.open(folder / "0001.jpg") as image:
        by_hand = image.crop((25, 57, 153, 185)).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(store.array[1], np.asarray(by_hand))
    wide = plan.model_copy(update={"crop": CropPlan(center_x=89, center_y=121, size=180)})
    with pytest.raises(PlanError, match=r"178 x 218 pixels do not hold the square of data\.crop, columns -1\.\.178"):
        ensure_store(wide, tmp_path)
