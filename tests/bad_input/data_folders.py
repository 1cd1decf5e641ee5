"""Data that cannot be trained on: folders, tables, labels, and plans that ask of them what they have not."""

from harness import ONE_NETWORK, Case


def _data(name: str, *changes: str, says: tuple[str, ...]) -> Case:
    options = [part for change in changes for part in ("--set", change)]
    return Case(name, ("launch", "tiny.yaml", "--run-dir", "new", *ONE_NETWORK, *options), says)


def _images(folder: str, *changes: str, says: tuple[str, ...]) -> Case:
    says = ("data.", *says)
    return _data(
        f"the images '{folder}' {' '.join(changes)}".rstrip(), f"data.path=images/{folder}", *changes, says=says
    )


def _table(file: str, *changes: str, says: tuple[str, ...]) -> Case:
    return _data(
        f"the table '{file}' {' '.join(changes)}".rstrip(), f"data.path=tables/{file}.parquet", *changes, says=says
    )


FOLDERS = (
    _data(
        "a folder that is not there",
        "data.path=./nosuch",
        says=("data.path = ./nosuch", "a folder of", "check the path"),
    ),
    _data(
        "a path that is not there", "data.path=/nosuch/images", says=("data.path = /nosuch/images", "check the path")
    ),
    _data(
        "a table that is not there", "data.path=nosuch.parquet", says=("data.path = nosuch.parquet", "check the path")
    ),
    _data("no path at all", "data.path=''", says=("data.path = :", "at least 1 character")),
    _data("a file of text", "data.path=a file", says=("data.path", "a file", "Parquet")),
    _data("a run as images", "data.path=runs/unfinished", says=("data.path", "runs/unfinished", "neither images nor")),
    _data("a network as images", "data.path=networks/good", says=("data.path", "networks/good", "neither images nor")),
    _images("empty", says=("images/empty", "neither images nor Parquet files")),
    _images("texts", says=("images/texts", "neither images nor Parquet files")),
    _images("hidden", says=("images/hidden", "neither images nor Parquet files")),
    _images("single.png", says=("images/single.png", "give the folder")),
    _images("both", says=("images/both", "not of both", "separate them")),
    _images(
        "broken",
        says=(
            "images/broken",
            "3 of the 3 images",
            "data.max_unreadable = 0.01: expected",
            "torn0.png",
            "Repair or remove",
        ),
    ),
    _images("some broken", says=("images/some broken", "3 of the 15 images", "data.max_unreadable", "torn")),
    _images("some broken", "data.max_unreadable=0.1", says=("data.max_unreadable = 0.1", "of the 15")),
    _data(
        "fewer images than a batch",
        "data.path=images/good",
        "training.batch_size=16",
        says=("training.batch_size = 16", "at most the data set's 12 images", "Lower it"),
    ),
    _data(
        "a crop larger than the images",
        "data.path=images/good",
        "data.crop={center_x: 4, center_y: 4, size: 12}",
        says=("data.crop", "8 x 8", "12 of the 12 images", "data.max_unreadable"),
    ),
    _data(
        "a crop beside the images",
        "data.path=images/good",
        "data.crop={center_x: 90, center_y: 4, size: 4}",
        says=("data.crop", "columns 88..91", "data.max_unreadable"),
    ),
    _data(
        "a split of a folder without any",
        "data.path=images/good",
        "data.split=validation",
        says=("data.split = validation", "train", "leave data.split out"),
    ),
    _data(
        "a split that a folder has not",
        "data.path=images/splits",
        "data.split=validation",
        says=("data.split = validation", "one of test, train"),
    ),
    _data("a split of the digits", "data.split=test", says=("data.split = test", "train", "leave data.split out")),
    _data(
        "a configuration of a folder",
        "data.path=images/good",
        "data.config_name=small",
        says=("data.config_name = small", "null", "leave it out"),
    ),
    _data(
        "a column of images of a folder",
        "data.path=images/good",
        "data.image_column=picture",
        says=("data.image_column = picture", "null", "images/good"),
    ),
    _data(
        "a column of images of the digits", "data.image_column=picture", says=("data.image_column = picture", "null")
    ),
)

TABLES = (
    _table("truncated", says=("data.path", "truncated.parquet", "a Parquet file", "convert or replace")),
    _table("text", says=("data.path", "text.parquet", "a Parquet file", "convert or replace")),
    _table("empty", says=("data.path", "empty.parquet", "a Parquet file", "convert or replace")),
    _table("garbled", says=("data.path", "garbled.parquet")),
    _table(
        "no images", says=("data.image_column", "no images.parquet", "caption (string)", "No column holds image files")
    ),
    _table("no rows", says=("data.path", "no rows.parquet", "at least one image", "empty")),
    _table("null images", says=("data.max_unreadable", "12 of the 12", "the row holds no image")),
    _table(
        "two columns of images", says=("data.image_column = null", "Set data.image_column to one of: image, thumbnail")
    ),
    _table("good", "data.image_column=picture", says=("data.image_column = picture", "one of: image")),
    _table("good", "data.image_column=caption", says=("data.image_column = caption", "one of: image")),
    _table(
        "good",
        "data.label_column=class",
        says=("data.label_column = class", "it is not there", "one of: label, caption"),
    ),
    _table(
        "good",
        "data.label_column=image",
        says=("data.label_column = image", "it holds binary", "one of: label, caption"),
    ),
    _table("good", "data.label_column=label.fine", says=("data.label_column = label.fine", "it is not there")),
    _table(
        "good",
        "data.label_column=label",
        "model.num_classes=5",
        says=("model.num_classes = 5", "at least 12", "labels up to 11"),
    ),
    _table(
        "null label",
        "data.label_column=label",
        "model.num_classes=12",
        says=("data.label_column = label", "row 0 has no label", "name another column"),
    ),
    _table(
        "negative label",
        "data.label_column=label",
        "model.num_classes=12",
        says=("data.label_column = label", "the label -1", "a number from 0"),
    ),
    _table("good", "data.config_name=small", says=("data.config_name = small", "null", "leave it out")),
    _table("good", "data.split=test", says=("data.split = test", "train", "leave data.split out")),
)

LABELS = (
    _data(
        "classes of a folder by another name",
        "data.path=images/classes",
        "data.label_column=class",
        "model.num_classes=2",
        says=("data.label_column = class", "label", "Set it so"),
    ),
    _data(
        "an image outside the classes",
        "data.path=images/half classes",
        "data.label_column=label",
        "model.num_classes=2",
        says=("data.label_column = label", "every image in the folder of its class", "lies in none"),
    ),
    _data(
        "more classes than the plan's",
        "data.path=images/classes",
        "data.label_column=label",
        "model.num_classes=1",
        says=("model.num_classes = 1", "at least 2"),
    ),
    _data(
        "labels of the digits by another name", "data.label_column=digit", says=("data.label_column = digit", "label")
    ),
    _data(
        "fewer classes than digits",
        "data.label_column=label",
        "model.num_classes=5",
        says=("model.num_classes = 5", "at least 10", "labels up to 9"),
    ),
)


def _drawn(file: str, *changes: str, says: tuple[str, ...]) -> Case:
    changes = ("model={family: vector}", "data.random_flip=false", f"data.path=drawings/{file}", *changes)
    drawings = () if any(change.startswith("data.drawings") for change in changes) else ("data.drawings={}",)
    return _data(f"drawings of '{file}' {' '.join(changes[3:])}".rstrip(), *changes, *drawings, says=says)


DRAWINGS = (
    _drawn("nosuch.ndjson", says=("data.path = drawings/nosuch.ndjson", "a QuickDraw .ndjson file", "check the path")),
    _drawn("one.svg", says=("drawings/one.svg", "one drawing", "give the folder")),
    _drawn("empty.ndjson", says=("drawings/empty.ndjson", "at least one drawing", "choose another")),
    _drawn("empty", says=("drawings/empty", "neither .ndjson nor .svg files", "choose another")),
    _drawn("both", says=("drawings/both", "1 .ndjson and 1 .svg files", "separate them")),
    _drawn("text.zip", says=("drawings/text.zip", "a .zip of SVG files", "replace the file")),
    _drawn("no drawings.zip", says=("drawings/no drawings.zip", "holds no SVG files", "choose another")),
    _drawn("pipe.ndjson", says=("drawings/pipe.ndjson", "a QuickDraw .ndjson file", "check the path")),
    _drawn("../images/good", says=("images/good", "neither .ndjson nor .svg files")),
    _drawn("../tables/good.parquet", says=("good.parquet", "a QuickDraw .ndjson file", "Choose another")),
    _drawn(
        "broken.ndjson",
        says=(
            "data.max_unreadable = 0.01",
            "3 of the 15 drawings",
            "line 13 (it is no object",
            "Repair or remove",
        ),
    ),
    _drawn("entities", says=("data.max_unreadable", "1 of the 1 drawings", "a.svg (it defines the entity 'a'")),
    _drawn("good.ndjson", "training.batch_size=16", says=("training.batch_size = 16", "12 drawings", "Lower it")),
    _drawn(
        "good.ndjson",
        "data.drawings={max_points: 3}",
        says=("data.drawings.max_points = 3", "at least one of the 12 drawings", "Raise it"),
    ),
    _drawn("good.ndjson", "data.split=test", says=("data.split = test", "train", "leave data.split out")),
    _drawn("good.ndjson", "data.label_column=word", says=("data.label_column = word", "null", "Leave it out")),
    _drawn("good.ndjson", "data.drawings={spacing: 1}", says=("data.drawings.spacing", "data.drawings.point_spacing")),
    _drawn(
        "good.ndjson",
        "data.drawings={scale: 1e99}",
        says=("data.drawings.scale", "less than or equal to"),
    ),
    *(
        _data(f"the drawings '{file}' as images", f"data.path=drawings/{file}", says=("data.drawings", "model.family"))
        for file in ("good.ndjson", "entities")
    ),
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
