"""Where drawings come from: QuickDraw lines, and SVG files with all that a path may hold."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from drawing_files import as_line, as_svg, scribbles, write_lines, write_svgs

from region_workers.data.decode import Item
from region_workers.data.drawing_sources import MOST_BYTES, open_drawings, strokes_of_json
from region_workers.data.drawings import UnreadableDrawingError
from region_workers.data.svg import strokes_of_svg
from schemas.data import DrawingsPlan
from schemas.plan import DataPlan

DRAWINGS = scribbles(4)


def plan_of(path: Path, **values: object) -> DataPlan:
    return DataPlan(path=str(path), drawings=DrawingsPlan(), **values)


def zipped(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def svg(inner: str) -> list[np.ndarray]:
    return strokes_of_svg(f'<svg xmlns="http://www.w3.org/2000/svg">{inner}</svg>'.encode())


def ends(data: str) -> list[list[list[float]]]:
    """The first and the last point of each stroke of a path."""
    return [stroke[[0, -1]].round(9).tolist() for stroke in svg(f'<path d="{data}"/>')]


@pytest.mark.parametrize("kind", ["lines", "raw lines", "folder", "folder of lines", "zip"])
def test_every_kind_of_source_gives_its_drawings_in_order(tmp_path: Path, kind: str) -> None:
    if kind in ("lines", "raw lines"):
        path = tmp_path / "cat.ndjson"
        path.write_text("\n".join(as_line(drawing, kind == "raw lines") for drawing in DRAWINGS) + "\n\n")
    elif kind == "folder":
        path = write_svgs(tmp_path / "svg", DRAWINGS)
        (path / "README.txt").write_text("no drawing")
        (path / ".hidden.svg").write_text("no drawing")
    elif kind == "folder of lines":
        path = tmp_path / "classes"
        path.mkdir()
        write_lines(path / "a.ndjson", DRAWINGS[:1])
        write_lines(path / "b.ndjson", DRAWINGS[1:])
    else:
        files = {f"kanji/{number}.svg": as_svg(drawing) for number, drawing in enumerate(DRAWINGS)}
        path = zipped(tmp_path / "a.zip", {"COPYING": "x", "__MACOSX/kanji/._0.svg": "x", **files})
    source = open_drawings(plan_of(path))
    found = [source.strokes(item) for item in source.items()]
    assert source.count() == len(found) == len(DRAWINGS)
    for strokes, drawing in zip(found, DRAWINGS, strict=True):
        assert len(strokes) == len(drawing)
        for stroke, drawn in zip(strokes, drawing, strict=True):
            np.testing.assert_allclose(stroke[[0, -1]], drawn[[0, -1]])
    before = source.identity()
    path.touch() if path.is_file() else next(path.iterdir()).write_text(as_line(DRAWINGS[0]))
    assert open_drawings(plan_of(path)).identity() != before


def test_a_folder_of_splits_gives_the_plan_s(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.ndjson", DRAWINGS[:3])
    write_lines(tmp_path / "test.ndjson", DRAWINGS[3:])
    assert open_drawings(plan_of(tmp_path)).count() == 3
    assert open_drawings(plan_of(tmp_path, split="test")).count() == 1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("M1,2 3,4 5 6", [[[1, 2], [5, 6]]]),
        ("m1 2l3 4-1-1", [[[1, 2], [3, 5]]]),
        ("M1 2m3 4 1 1", [[[4, 6], [5, 7]]]),
        ("M1 2H5V7h-1v-1", [[[1, 2], [4, 6]]]),
        ("M0 0L1 0 1 1ZL5 5", [[[0, 0], [0, 0]], [[0, 0], [5, 5]]]),
        ("M1 1c1 0 2 1 2 2s1 2 2 2S9 9 8 8", [[[1, 1], [8, 8]]]),
        ("M1 1q1 0 2 2t2 2T7 7Q8 8 9 9", [[[1, 1], [9, 9]]]),
        ("M10 0A5 5 0 0110 10a5 5 0 11.5.5", [[[10, 0], [10.5, 10.5]]]),
        ("M0 0A1 1 0 0 1 10 0", [[[0, 0], [10, 0]]]),  # radii that grow until they reach
        ("M0 0A0 1 0 0 1 10 0", [[[0, 0], [10, 0]]]),  # a line
        ("M1e1-.5e0L.5.5", [[[10, -0.5], [0.5, 0.5]]]),
        ("M1 1", []),
        (" ", []),
    ],
)
def test_paths_are_read_with_every_command(data: str, expected: list[list[list[float]]]) -> None:
    assert ends(data) == expected


def test_curves_go_where_they_should() -> None:
    (cubic,) = svg('<path d="M0 0C0 1 1 1 1 0"/>')
    share = np.linspace(0, 1, 17)
    middle = 3 * share * (1 - share)
    np.testing.assert_allclose(cubic, np.stack([3 * share**2 - 2 * share**3, middle], axis=1), atol=1e-12)
    (smooth,) = svg('<path d="M0 0C0 1 1 1 1 0S2-1 2 0"/>')  # turned by half around its middle
    np.testing.assert_allclose(smooth, [2, 0] - smooth[::-1], atol=1e-12)
    (quadratic,) = svg('<path d="M0 0Q1 2 2 0T4 0"/>')
    np.testing.assert_allclose(quadratic[8], [1, 1])
    np.testing.assert_allclose(quadratic, [4, 0] - quadratic[::-1], atol=1e-12)


@pytest.mark.parametrize(
    ("flags", "centre", "turns"),
    [("0 1", (0, 0), 0.25), ("1 1", (1, -1), 0.75), ("0 0", (1, -1), -0.25), ("1 0", (0, 0), -0.75)],
)
def test_an_arc_takes_the_way_that_its_flags_say(flags: str, centre: tuple[float, float], turns: float) -> None:
    (arc,) = svg(f'<path d="M0 -1A1 1 0 {flags} 1 0"/>')
    offsets = arc - centre
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=1), 1, atol=3e-4)
    angles = np.unwrap(np.arctan2(offsets[:, 1], offsets[:, 0]))
    assert angles[-1] - angles[0] == pytest.approx(turns * 2 * np.pi)
    assert (np.diff(angles) * np.sign(turns) > 0).all()


def test_shapes_are_strokes_and_transforms_hold() -> None:
    shapes = svg(
        '<line x1="1" x2="2" y2="3"/><polyline points="0,0 1,1 2 0"/><polygon points="0 0 1 0 1 1"/>'
        '<rect x="1" y="2" width="3" height="4"/><circle cx="5" cy="5" r="2"/><ellipse rx="3" ry="1"/>'
    )
    assert [stroke[[0, -1]].tolist() for stroke in shapes[:3]] == [[[1, 0], [2, 3]], [[0, 0], [2, 0]], [[0, 0], [0, 0]]]
    boxes = [[*stroke.min(axis=0), *stroke.max(axis=0)] for stroke in shapes[3:]]
    np.testing.assert_allclose(boxes, [[1, 2, 4, 6], [3, 3, 7, 7], [-3, -1, 3, 1]], atol=1e-6)
    (stroke,) = svg(
        '<g transform="translate(10) scale(2, 3)"><a><path transform="rotate(90)" d="M0 0L1 0"/></a></g>'
        '<defs><path d="M0 0L9 9"/></defs><text transform="unknown">1</text>'
    )
    np.testing.assert_allclose(stroke[[0, -1]], [[10, 0], [10, 3]], atol=1e-12)
    (turned,) = svg('<path transform="matrix(0 1 -1 0 5 6),rotate(180 1 1) skewX(45)skewY(0)" d="M0 0L0 1"/>')
    np.testing.assert_allclose(turned[[0, -1]], [[3, 8], [4, 7]], atol=1e-12)


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        ('<path d="L1 1"/>', "cannot go on, or begin, with 'L1 1'"),
        ('<path d="M1 1L2"/>', "1 numbers after L"),
        ('<path d="M1 1L"/>', "0 numbers after L"),
        ('<path d="M1 1Z5"/>', "1 numbers after Z"),
        ('<path d="M1 1L2 2;3 3"/>', "has ';' after L"),
        ('<path d="M1 1A1 1 0 2 1 3 3"/>', "after A"),
        ('<path d="M1 1X2 2"/>', "'X'"),
        ('<use href="#a"/>', "<use>"),
        ('<path transform="turn(3)" d="M0 0L1 1"/>', r"transform 'turn\(3\)' is not known"),
        ('<path transform="rotate(1 2 3 4)" d="M0 0L1 1"/>', "TypeError"),
        ('<path style="transform: scale(2)" d="M0 0L1 1"/>', "a style"),
        ('<svg><path d="M0 0L1 1"/></svg>', "a picture within the picture"),
        ('<line x1="10mm"/>', "10mm"),
        ("<path", "ExpatError"),
    ],
)
def test_what_is_not_read_of_svg_says_why(inner: str, reason: str) -> None:
    with pytest.raises(UnreadableDrawingError, match=reason):
        svg(inner)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ('<!DOCTYPE svg [<!ENTITY a "M0 0L1 1">]><svg><path d="&a;"/></svg>', "entity 'a'"),
        ('<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg><text>&a;</text></svg>', "entity 'a'"),
        ('<!DOCTYPE svg [<!ENTITY % a "x"> %a;]><svg/>', "entity 'a'"),
        ("<html><path d='M0 0L1 1'/></html>", "<html>, and no <svg>"),
        ("", "no element found"),
        ("\0\1", "ExpatError"),
    ],
)
def test_svg_files_that_are_none_or_define_entities_are_unreadable(file: str, reason: str) -> None:
    with pytest.raises(UnreadableDrawingError, match=reason):
        strokes_of_svg(file.encode())


def test_a_document_type_without_entities_is_read() -> None:
    kanji = '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "x.dtd" [<!ATTLIST g kvg:part CDATA #IMPLIED >]>'
    assert len(strokes_of_svg(f'{kanji}<svg><g kvg:part="1"><path d="M0 0L1 1"/></g></svg>'.encode())) == 1


@pytest.mark.parametrize(
    "line",
    [
        *("", "[]", "{}", "3", '{"drawing": 3}', '{"drawing": [[[1, 2]]]}', '{"drawing": [[[1, 2], [1]]]}'),
        *('{"drawing": [[["a"], ["b"]]]}', '{"drawing": [[[[1]], [[2]]]]}', '{"drawing": {"a": 1}}', "\udcff"),
        *(f'{{"drawing": [[[1{"0" * 400}], [1]]]}}', "[" * 100_000),
    ],
)
def test_lines_that_hold_no_drawing_are_unreadable(line: str) -> None:
    with pytest.raises(UnreadableDrawingError):
        strokes_of_json(line.encode(errors="surrogateescape"))


def test_a_line_without_end_is_one_unreadable_drawing(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text(f"{as_line(DRAWINGS[0])}\n{'[' * (3 * MOST_BYTES)}\n{as_line(DRAWINGS[1])}\n")
    source = open_drawings(plan_of(path))
    _, long, last = list(source.items())
    with pytest.raises(UnreadableDrawingError, match="more than 262,144 bytes"):
        source.strokes(long)
    assert last.name == "line 3"
    assert len(source.strokes(last)) == len(DRAWINGS[1])


def test_files_of_an_archive_or_folder_that_do_not_read_are_unreadable(tmp_path: Path) -> None:
    bomb = zipped(
        tmp_path / "a.zip", {"a.svg": "<svg>" + " " * (50 << 20) + "</svg>", "../../b.svg": as_svg(DRAWINGS[0])}
    )
    source = open_drawings(plan_of(bomb))
    outside, inside = source.items()
    assert outside.name == "../../b.svg"  # a name alone: nothing is unpacked to the disk
    assert len(source.strokes(outside)) == len(DRAWINGS[0])
    with pytest.raises(UnreadableDrawingError, match="more than 262,144 bytes"):
        source.strokes(inside)
    whole = zipped(tmp_path / "b.zip", {"a.svg": as_svg(DRAWINGS[0])}).read_bytes()
    (tmp_path / "b.zip").write_bytes(whole.replace(b"a.svg", b"b.svg", 1))  # the two lists of names disagree
    source = open_drawings(plan_of(tmp_path / "b.zip"))
    with pytest.raises(UnreadableDrawingError, match="BadZipFile"):
        source.strokes(next(source.items()))
    gone = open_drawings(plan_of(write_svgs(tmp_path / "svg", DRAWINGS)))
    with pytest.raises(UnreadableDrawingError, match="No such file"):
        gone.strokes(Item("x", str(tmp_path / "svg/x.svg")))
