"""Drawings: strokes to rows by the published recipe and back, and their pictures."""

import numpy as np
import pytest
from drawing_files import scribbles

from region_workers.data.drawings import LongDrawingError, UnreadableDrawingError, raster, rows_of, strokes_of
from schemas.data import DrawingsPlan, RasterPlan

L_SHAPE = [np.array([[10.0, 20.0], [10.0, 40.0], [30.0, 40.0]]), np.array([[20.0, 20.0], [30.0, 20.0]])]


def by_the_recipe(strokes: list[np.ndarray], plan: DrawingsPlan) -> np.ndarray:
    """The recipe as it is told, a stroke and a point at a time."""
    kept = [stroke - strokes[0][0] for stroke in strokes[: plan.max_strokes] if len(stroke) > 1]
    kept = [stroke - kept[0][0] for stroke in kept]
    reach = max(np.hypot(*point) for stroke in kept for point in stroke)
    points = []
    for stroke in kept:
        scaled = stroke / reach
        along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(scaled, axis=0).T))])
        places = np.linspace(0, along[-1], max(2, int(along[-1] / plan.point_spacing)))
        x, y = (np.interp(places, along, scaled[:, axis]) * plan.scale for axis in (0, 1))
        points += [(x[i], y[i], float(i == len(x) - 1)) for i in range(len(x))]
    rows = np.array(points)
    if plan.coordinates == "delta":
        rows[1:, :2] = np.diff(rows[:, :2], axis=0)
    return rows[1:]


@pytest.mark.parametrize("coordinates", ["absolute", "delta"])
@pytest.mark.parametrize("seed", range(5))
def test_rows_are_the_recipe_s_and_strokes_come_back(coordinates: str, seed: int) -> None:
    plan = DrawingsPlan(coordinates=coordinates, point_spacing=0.1, max_points=5000)
    drawing = [*scribbles(1, seed)[0], np.zeros((1, 2))]
    rows = rows_of(drawing, plan)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, by_the_recipe(drawing, plan), atol=1e-4)

    back = strokes_of(rows, plan.coordinates)
    assert len(back) == len(drawing) - 1  # the one of a single point is gone
    start = drawing[0][0]
    scale = plan.scale / max(np.linalg.norm(stroke - start, axis=1).max() for stroke in drawing[:-1])
    for stroke, original in zip(back, drawing, strict=False):
        assert stroke.dtype == np.float32
        np.testing.assert_allclose(stroke[[0, -1]], (original[[0, -1]] - start) * scale, atol=1e-3)


def test_points_are_as_far_apart_as_the_plan_says() -> None:
    rows = rows_of(L_SHAPE, DrawingsPlan())
    # In units of the reach, sqrt(800): strokes of 1.414 and 0.354, so 28 and 7 points, of which the first is no row.
    assert rows.shape == (34, 3)
    assert np.flatnonzero(rows[:, 2]).tolist() == [26, 33]
    assert np.hypot(rows[:, 0], rows[:, 1]).max() == pytest.approx(10.0)


def test_strokes_past_the_limit_are_cut_and_long_drawings_refused() -> None:
    many = [stroke + index for index, stroke in enumerate([L_SHAPE[1]] * 30)]
    assert len(strokes_of(rows_of(many, DrawingsPlan(max_strokes=3)), "absolute")) == 3
    assert len(rows_of(L_SHAPE, DrawingsPlan(max_points=36))) == 34
    with pytest.raises(LongDrawingError, match="35 points"):
        rows_of(L_SHAPE, DrawingsPlan(max_points=35))


@pytest.mark.parametrize(
    ("strokes", "reason"),
    [
        ([], "no stroke"),
        ([np.zeros((1, 2)), np.zeros((0, 2))], "no stroke"),
        ([np.ones((3, 2))], "all its points are one"),
        ([np.array([[0, 0], [np.nan, 1]])], "no number"),
        ([np.array([[0, 0], [np.inf, 1]])], "no number"),
        ([np.array([[0, 0], [1e300, 1]])], "no number"),
    ],
)
def test_what_is_no_drawing_says_why(strokes: list[np.ndarray], reason: str) -> None:
    with pytest.raises(UnreadableDrawingError, match=reason):
        rows_of(strokes, DrawingsPlan())


def test_a_long_zigzag_needs_no_memory_for_its_points() -> None:
    zigzag = np.stack([np.arange(200_000) % 2, np.zeros(200_000)], axis=1)
    with pytest.raises(LongDrawingError, match="199999000 points"):
        rows_of([zigzag], DrawingsPlan(point_spacing=0.001))


def test_pen_of_a_network_is_up_above_0_8_and_an_unfinished_stroke_counts() -> None:
    rows = np.array([[1, 0, 0.7], [2, 0, 0.81], [3, 0, 0.9], [4, 1, 0.0], [5, 1, -3.0]], np.float32)
    assert [stroke[:, 0].tolist() for stroke in strokes_of(rows, "absolute")] == [[0, 1, 2], [4, 5]]
    assert [stroke[:, 0].tolist() for stroke in strokes_of(rows, "delta")] == [[0, 1, 3], [10, 15]]
    assert strokes_of(np.empty((0, 3), np.float32), "absolute") == []


def test_picture_fills_the_canvas_less_its_margins_and_is_centred() -> None:
    plan = RasterPlan(canvas_px=80, margin=0.1, line_width_px=2)
    square = np.array([[0, 0], [0, 5], [5, 5], [5, 0], [0, 0]]) + 1000.0
    picture = raster([square], plan)
    assert picture.shape == (80, 80, 1)
    assert picture.dtype == np.uint8
    dark = picture[:, :, 0] < 128
    assert np.flatnonzero(dark.any(axis=0))[[0, -1]].tolist() == [8, 71]
    assert np.flatnonzero(dark.any(axis=1))[[0, -1]].tolist() == [8, 71]
    assert dark[8:10, 8:72].all()  # two pixels wide, corners closed
    assert not dark[11:69, 11:69].any()
    assert (raster([square * 4], plan) == picture).all()


def test_pictures_of_little_or_nothing() -> None:
    plan = RasterPlan()
    white = raster([], plan)
    assert (white == 255).all()
    assert (raster([np.empty((0, 2))], plan) == 255).all()
    dot = raster([np.array([[3.0, 4.0], [3.0, 4.0]])], plan)
    assert np.argwhere(dot[:, :, 0] < 255).tolist() == [[31, 31], [31, 32], [32, 31], [32, 32]]
    broken = np.array([[np.nan, 0], [0, 0], [np.inf, 1], [1, 1]])
    assert (raster([broken], plan) == raster([broken[[1, 3]]], plan)).all()
    assert (raster([np.array([[-3e38, 0], [3e38, 1]], np.float32)], plan) < 255).any()


def test_lines_are_smooth() -> None:
    greys = np.unique(raster([np.array([[0.0, 0.0], [7.0, 3.0]])], RasterPlan()))
    assert len(greys) > 4
