"""Small files of drawings, scribbles of a given seed as QuickDraw lines or as SVG, and the plans that train on them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Drawing = list[np.ndarray]  # strokes float64 [n, 2]
_FILE = "DRAWINGS"  # in a change of a plan: where the tests' drawings lie
VECTOR = (
    "model={family: vector, hidden_size: 8, num_layers: 2}",
    f"data={{path: {_FILE}, drawings: {{point_spacing: 0.3}}}}",
)


def with_drawings(changes: Sequence[str], folder: Path) -> tuple[str, ...]:
    """The changes of a plan, with the path of 24 scribbles in `folder` where they name them."""
    path = folder / "drawings.ndjson"
    if any(_FILE in change for change in changes) and not path.exists():
        write_lines(path, scribbles(24))
    return tuple(change.replace(_FILE, str(path)) for change in changes)


def scribbles(count: int, seed: int = 0) -> list[Drawing]:
    """Drawings of one to five strokes, of two to nine whole points each; no two are equal."""
    generator = np.random.default_rng(seed)
    return [
        [
            generator.integers(0, 40, (generator.integers(2, 10), 2)).cumsum(axis=0).astype(float)
            for _ in range(generator.integers(1, 6))
        ]
        for _ in range(count)
    ]


def as_line(drawing: Drawing, times: bool = False) -> str:
    """A QuickDraw line, simplified or, with times, raw."""
    strokes = [[*stroke.T.tolist(), *([list(range(len(stroke)))] if times else [])] for stroke in drawing]
    return json.dumps({"word": "scribble", "recognized": True, "drawing": strokes})


def write_lines(path: Path, drawings: Sequence[Drawing]) -> Path:
    """A QuickDraw file."""
    path.write_text("".join(f"{as_line(drawing)}\n" for drawing in drawings))
    return path


def as_svg(drawing: Drawing) -> str:
    """An SVG file with a path a stroke."""
    paths = [f'<path d="M{" ".join(f"{x:g},{y:g}" for x, y in stroke)}"/>' for stroke in drawing]
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 109 109"><g>{"".join(paths)}</g></svg>'


def write_svgs(folder: Path, drawings: Sequence[Drawing]) -> Path:
    """A folder with an SVG file a drawing."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, drawing in enumerate(drawings):
        (folder / f"{number:05}.svg").write_text(as_svg(drawing))
    return folder
