"""Drawings made to cost time or memory: each is read, or refused in words, within little of both."""

import time
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from drawing_files import as_svg, scribbles

from region_workers.data.drawing_sources import MOST_BYTES, strokes_of_json
from region_workers.data.drawing_store import ensure_drawings
from region_workers.data.drawings import LongDrawingError, UnreadableDrawingError, rows_of
from region_workers.data.svg import strokes_of_svg
from schemas.data import DrawingsPlan
from schemas.plan import DataPlan

FULL = MOST_BYTES - 1000  # of what is repeated


def path(data: str) -> str:
    return f'<svg><path d="{data}"/></svg>'


LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
SVG = {
    "entities within entities": f'<!DOCTYPE svg [<!ENTITY a0 "x">{LAUGHS}]><svg><text>&a9;</text></svg>',
    "a path of lines": path("M0 0" + "1 1" * (FULL // 4)),
    "a path of many strokes": path("M0 0h1" * (FULL // 6)),
    "digits for an arc": path("M0 0A" + "1" * FULL),
    "signs for an arc": path("M0 0A" + "1-1" * (FULL // 3)),
    "digits for a line": path("M0 0L" + "1" * FULL),
    "points for a line": path("M0 0L" + "." * FULL),
    "numbers without an end": path("M0 0L" + "1e" * (FULL // 2)),
    "spaces in a path": path("M0 0" + " " * FULL + "x"),
    "spaces in a transform": f'<svg><path transform="{" " * FULL}x" d="M0 0L1 1"/></svg>',
    "letters in a transform": f'<svg><path transform="{"x" * FULL}" d="M0 0L1 1"/></svg>',
    "transforms": f'<svg><path transform="{"scale(9)" * (FULL // 8)}" d="M0 0L1 1"/></svg>',
    "groups in groups": "<svg>" + '<g transform="scale(9)">' * (FULL // 24),
    "attributes": "<svg><path " + " ".join(f"a{n}=''" for n in range(FULL // 11)) + "/></svg>",
    "huge numbers": path("M0 0L1e999 1"),
    "numbers that overflow": path("M0 0C1e308 1e308 -1e308 1e308 1e308 0A1e308 1e-308 9 1 1 1 1"),
    "a number that is none": '<svg><line x2="nan" y2="inf"/></svg>',
}
LINES = {
    "brackets": "[" * FULL,
    "strokes": '{"drawing": [' + ",".join(["[[],[]]"] * (FULL // 8)) + "]}",
    "points": f'{{"drawing": [[[{",".join(["0,1"] * (FULL // 8))}], [{",".join(["0,0"] * (FULL // 8))}]]]}}',
    "a huge number": f'{{"drawing": [[[0, {"9" * 4000}], [0, 1]]]}}',
    "numbers beyond all": '{"drawing": [[[0, 1e999], [0, 1]]]}',
    "no number": '{"drawing": [[[0, NaN], [0, Infinity]]]}',
    "a number too near": '{"drawing": [[[0, 5e-324], [0, 5e-324]]]}',
}


@pytest.mark.parametrize("name", [*SVG, *LINES])
def test_a_hostile_drawing_costs_little(name: str) -> None:
    text, strokes_of = (SVG[name], strokes_of_svg) if name in SVG else (LINES[name], strokes_of_json)
    assert len(text) <= MOST_BYTES
    began = time.process_time()
    tracemalloc.start()
    with suppress(UnreadableDrawingError, LongDrawingError):
        assert np.isfinite(rows_of(strokes_of(text.encode()), DrawingsPlan())).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert time.process_time() - began < 30  # traced, on a slow machine, beside others


def test_an_archive_of_bombs_is_built_around_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.svg", as_svg(scribbles(1)[0]))
        for number in range(3):
            archive.writestr(f"bomb{number}.svg", b"<svg>" + b" " * (100 << 20))
    plan = DataPlan(path=str(tmp_path / "a.zip"), drawings=DrawingsPlan(), max_unreadable=0.9)
    tracemalloc.start()
    store = ensure_drawings(plan, tmp_path / "cache")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert len(store) == 1
    assert store.info.unreadable_names == ("bomb0.svg", "bomb1.svg", "bomb2.svg")
