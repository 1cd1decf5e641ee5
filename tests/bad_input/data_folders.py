"""Data that cannot be trained on: folders, tables, labels, and plans that ask of them what they have not."""

from harness import ONE_NETWORK, Case


def _data(*changes: str, says: tuple[str, ...]) -> Case:
    options = [part for change in changes for part in ("--set", change)]
    return Case(f"data {' '.join(changes)}", ("launch", "tiny.yaml", "--run-dir", "new", *ONE_NETWORK, *options), says)


def _set(change: str, *says: str) -> Case:
    """Of the digits."""
    return _data(change, says=says)


def _images(folder: str, *says: str, also: tuple[str, ...] = ()) -> Case:
    return _data(f"data.path=images/{folder}", *also, says=says)


def _table(file: str, *says: str, also: tuple[str, ...] = ()) -> Case:
    return _data(f"data.path=tables/{file}.parquet", *also, says=says)


def _drawn(file: str, *says: str, also: tuple[str, ...] = ()) -> Case:
    changes = ("model={family: vector}", "data.random_flip=false", "data.drawings={}", f"data.path=drawings/{file}")
    return _data(*changes, *also, says=says)


_CLASSES, _TWO = "data.label_column=label", "model.num_classes=2"
_NO_IMAGES = "neither images nor Parquet files"

FOLDERS = (
    _set("data.path=./nosuch", "data.path = ./nosuch", "a folder of", "check the path"),
    _set("data.path=/nosuch/images", "data.path = /nosuch/images", "check the path"),
    _set("data.path=nosuch.parquet", "data.path = nosuch.parquet", "check the path"),
    _set("data.path=''", "data.path = :", "at least 1 character"),
    _set("data.path=a file", "data.path", "a file", "Parquet"),
    _set("data.path=runs/unfinished", "data.path", "runs/unfinished", "neither images nor"),
    _set("data.path=networks/good", "data.path", "networks/good", "neither images nor"),
    _images("empty", "data.", "images/empty", _NO_IMAGES),
    _images("texts", "data.", "images/texts", _NO_IMAGES),
    _images("hidden", "data.", "images/hidden", _NO_IMAGES),
    _images("single.png", "data.", "images/single.png", "give the folder"),
    _images("both", "data.", "images/both", "not of both", "separate them"),
    _images(
        "broken",
        "images/broken",
        "3 of the 3 images",
        "data.max_unreadable = 0.01: expected",
        "torn0.png",
        "Repair or remove",
    ),
    _images("some broken", "images/some broken", "3 of the 15 images", "data.max_unreadable", "torn"),
    _images("some broken", "data.max_unreadable = 0.1", "of the 15", also=("data.max_unreadable=0.1",)),
    _images(
        "good",
        "training.batch_size = 16",
        "at most the data set's 12 images",
        "Lower it",
        also=("training.batch_size=16",),
    ),
    _images(
        "good",
        "data.crop",
        "8 x 8",
        "12 of the 12 images",
        "data.max_unreadable",
        also=("data.crop={center_x: 4, center_y: 4, size: 12}",),
    ),
    _images(
        "good",
        "data.crop",
        "columns 88..91",
        "data.max_unreadable",
        also=("data.crop={center_x: 90, center_y: 4, size: 4}",),
    ),
    _images("good", "data.split = validation", "train", "leave data.split out", also=("data.split=validation",)),
    _images("splits", "data.split = validation", "one of test, train", also=("data.split=validation",)),
    _set("data.split=test", "data.split = test", "train", "leave data.split out"),
    _images("good", "data.config_name = small", "null", "leave it out", also=("data.config_name=small",)),
    _images("good", "data.image_column = picture", "null", "images/good", also=("data.image_column=picture",)),
    _set("data.image_column=picture", "data.image_column = picture", "null"),
)

TABLES = (
    _table("truncated", "data.path", "truncated.parquet", "a Parquet file", "convert or replace"),
    _table("text", "data.path", "text.parquet", "a Parquet file", "convert or replace"),
    _table("empty", "data.path", "empty.parquet", "a Parquet file", "convert or replace"),
    _table("garbled", "data.path", "garbled.parquet"),
    _table("no images", "data.image_column", "no images.parquet", "caption (string)", "No column holds image files"),
    _table("no rows", "data.path", "no rows.parquet", "at least one image", "empty"),
    _table("null images", "data.max_unreadable", "12 of the 12", "the row holds no image"),
    _table("two columns of images", "data.image_column = null", "Set data.image_column to one of: image, thumbnail"),
    _table("good", "data.image_column = picture", "one of: image", also=("data.image_column=picture",)),
    _table("good", "data.image_column = caption", "one of: image", also=("data.image_column=caption",)),
    _table(
        "good",
        "data.label_column = class",
        "it is not there",
        "one of: label, caption",
        also=("data.label_column=class",),
    ),
    _table(
        "good",
        "data.label_column = image",
        "it holds binary",
        "one of: label, caption",
        also=("data.label_column=image",),
    ),
    _table("good", "data.label_column = label.fine", "it is not there", also=("data.label_column=label.fine",)),
    _table("good", "model.num_classes = 5", "at least 12", "labels up to 11", also=(_CLASSES, "model.num_classes=5")),
    *(
        _table(file, "data.label_column = label", *says, also=(_CLASSES, "model.num_classes=12"))
        for file, *says in (
            ("null label", "row 0 has no label", "name another column"),
            ("negative label", "the label -1", "a number from 0"),
        )
    ),
    _table("good", "data.config_name = small", "null", "leave it out", also=("data.config_name=small",)),
    _table("good", "data.split = test", "train", "leave data.split out", also=("data.split=test",)),
)

LABELS = (
    _images("classes", "data.label_column = class", "label", "Set it so", also=("data.label_column=class", _TWO)),
    _images(
        "half classes",
        "data.label_column = label",
        "every image in the folder of its class",
        "lies in none",
        also=(_CLASSES, _TWO),
    ),
    _images("classes", "model.num_classes = 1", "at least 2", also=(_CLASSES, "model.num_classes=1")),
    _set("data.label_column=digit", "data.label_column = digit", "label"),
    _data(_CLASSES, "model.num_classes=5", says=("model.num_classes = 5", "at least 10", "labels up to 9")),
)

DRAWINGS = (
    _drawn("nosuch.ndjson", "data.path = drawings/nosuch.ndjson", "a QuickDraw .ndjson file", "check the path"),
    _drawn("one.svg", "drawings/one.svg", "one drawing", "give the folder"),
    _drawn("empty.ndjson", "drawings/empty.ndjson", "at least one drawing", "choose another"),
    _drawn("empty", "drawings/empty", "neither .ndjson nor .svg files", "choose another"),
    _drawn("both", "drawings/both", "1 .ndjson and 1 .svg files", "separate them"),
    _drawn("text.zip", "drawings/text.zip", "a .zip of SVG files", "replace the file"),
    _drawn("no drawings.zip", "drawings/no drawings.zip", "holds no SVG files", "choose another"),
    _drawn("pipe.ndjson", "drawings/pipe.ndjson", "a QuickDraw .ndjson file", "check the path"),
    _drawn("../images/good", "images/good", "neither .ndjson nor .svg files"),
    _drawn("../tables/good.parquet", "good.parquet", "a QuickDraw .ndjson file", "Choose another"),
    _drawn(
        "broken.ndjson",
        "data.max_unreadable = 0.01",
        "3 of the 15 drawings",
        "line 13 (it is no object",
        "Repair or remove",
    ),
    _drawn("entities", "data.max_unreadable", "1 of the 1 drawings", "a.svg (it defines the entity 'a'"),
    _drawn("good.ndjson", "training.batch_size = 16", "12 drawings", "Lower it", also=("training.batch_size=16",)),
    _drawn(
        "good.ndjson",
        "data.drawings.max_points = 3",
        "at least one of the 12 drawings",
        "Raise it",
        also=("data.drawings.max_points=3",),
    ),
    _drawn("good.ndjson", "data.split = test", "train", "leave data.split out", also=("data.split=test",)),
    _drawn("good.ndjson", "data.label_column = word", "null", "Leave it out", also=("data.label_column=word",)),
    _drawn("good.ndjson", "data.drawings.spacing", "data.drawings.point_spacing", also=("data.drawings={spacing: 1}",)),
    _drawn("good.ndjson", "data.drawings.scale", "less than or equal to", also=("data.drawings={scale: 1e99}",)),
    *(_set(f"data.path=drawings/{file}", "data.drawings", "model.family") for file in ("good.ndjson", "entities")),
)

PLACES = tuple(
    Case(
        f"bad images with --run-dir {place}",
        ("launch", "tiny.yaml", "--run-dir", place, "--set", "data.path=images/empty"),
        ("data.path", "images/empty"),
    )
    for place in ("new/and/deeper", "runs/empty")
)

CASES = (*PLACES, *FOLDERS, *TABLES, *LABELS, *DRAWINGS)
