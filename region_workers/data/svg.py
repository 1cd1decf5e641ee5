"""An SVG file's paths and shapes as strokes, with the transforms that hold for them.

Read by expat and not as a tree: a file's own entities are refused, others are never fetched, and what is not drawn (a
text, a picture, CSS) passes by.
"""

import re
from collections.abc import Callable
from xml.parsers import expat

import numpy as np
import numpy.typing as npt

from region_workers.data.drawings import Stroke, UnreadableDrawingError
from region_workers.data.svg_paths import strokes_of_path

Matrix = npt.NDArray[np.float64]  # [3, 3]

_GROUPS = frozenset({"svg", "g", "a", "switch"})
_TRANSFORM = re.compile(r"[\s,]*+(\w++)\s*+\(([^()]*+)\)")
_ELLIPSE = "M {left} {cy} A {rx} {ry} 0 1 0 {right} {cy} A {rx} {ry} 0 1 0 {left} {cy} Z"


def strokes_of_svg(file: bytes) -> list[Stroke]:
    """The strokes in the order of the file, float64 [n, 2]; every subpath is one. Raises UnreadableDrawingError."""
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.EntityDeclHandler = reader.refuse_entity
    try:
        with np.errstate(all="ignore"):  # numbers without bound give strokes that are none: `rows_of` says so
            parser.Parse(file, True)
        return reader.strokes
    except UnreadableDrawingError:
        raise
    except Exception as error:  # a path may be broken in any way, and it is that one file's
        raise UnreadableDrawingError(f"{type(error).__name__}: {error}") from error


class _Reader:
    """What an XML parser calls; `strokes` are those read so far."""

    def __init__(self) -> None:
        self.strokes: list[Stroke] = []
        self._matrices: list[Matrix | None] = []  # of the open elements: all transforms down to each; None: none
        self._hidden = 0  # open elements within which nothing is drawn

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition(":")[2]
        if (name == "svg") != (not self._matrices):
            found = "a picture within the picture" if name == "svg" else f"<{name}>, and no <svg>"
            raise UnreadableDrawingError(f"it holds {found}")
        if self._hidden or not (name in _GROUPS or name in _SHAPES):
            if name == "use" and not self._hidden:
                raise UnreadableDrawingError("it draws by <use>, which is not read")
            self._hidden += 1
            return
        self._matrices.append(self._matrix(attributes))
        data = _SHAPES[name](attributes) if name in _SHAPES else None
        if data:
            self.strokes += [_moved(stroke, self._matrices[-1]) for stroke in strokes_of_path(data)]

    def end(self, tag: str) -> None:
        if self._hidden:
            self._hidden -= 1
        else:
            self._matrices.pop()

    def refuse_entity(self, name: str, *_: object) -> None:
        raise UnreadableDrawingError(f"it defines the entity {name!r}, and entities are not read")

    def _matrix(self, attributes: dict[str, str]) -> Matrix | None:
        outer = self._matrices[-1] if self._matrices else None
        if "transform" in attributes.get("style", ""):
            raise UnreadableDrawingError("a style holds a transform, which is read as an attribute alone")
        own = attributes.get("transform")
        if own is None:
            return outer
        return _matrix_of(own) if outer is None else outer @ _matrix_of(own)


def _moved(stroke: Stroke, matrix: Matrix | None) -> Stroke:
    return stroke if matrix is None else stroke @ matrix[:2, :2].T + matrix[:2, 2]


def _matrix_of(transforms: str) -> Matrix:
    """The matrix of an attribute `transform`, a list of functions of which the last holds first."""
    matrix, end = np.eye(3), 0
    while (found := _TRANSFORM.match(transforms, end)) and found[1] in _FUNCTIONS:
        numbers = [float(number) for number in found[2].replace(",", " ").split()]
        matrix, end = matrix @ _FUNCTIONS[found[1]](*numbers), found.end()
    if transforms[end:].strip():
        raise UnreadableDrawingError(f"its transform {transforms[end : end + 40]!r} is not known")
    return matrix


def _affine(a: float, b: float, c: float, d: float, e: float, f: float) -> Matrix:
    return np.array([[a, c, e], [b, d, f], [0.0, 0.0, 1.0]])


def _rotation(degrees: float, x: float = 0.0, y: float = 0.0) -> Matrix:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return _affine(cos, sin, -sin, cos, x - cos * x + sin * y, y - sin * x - cos * y)


_FUNCTIONS: dict[str, Callable[..., Matrix]] = {
    "matrix": _affine,
    "translate": lambda x, y=0.0: _affine(1, 0, 0, 1, x, y),
    "scale": lambda x, y=None: _affine(x, 0, 0, x if y is None else y, 0, 0),
    "rotate": _rotation,
    "skewX": lambda degrees: _affine(1, 0, np.tan(np.radians(degrees)), 1, 0, 0),
    "skewY": lambda degrees: _affine(1, np.tan(np.radians(degrees)), 0, 1, 0, 0),
}


def _number(attributes: dict[str, str], name: str) -> float:
    return float(attributes.get(name, 0))


def _line(of: dict[str, str]) -> str:
    return "M {} {} L {} {}".format(*(_number(of, name) for name in ("x1", "y1", "x2", "y2")))


def _rectangle(of: dict[str, str]) -> str:
    x, y, width, height = (_number(of, name) for name in ("x", "y", "width", "height"))
    return f"M {x} {y} h {width} v {height} h {-width} Z" if width and height else ""


def _ellipse(of: dict[str, str]) -> str:
    cx, cy = _number(of, "cx"), _number(of, "cy")
    rx, ry = (_number(of, name if name in of else "r") for name in ("rx", "ry"))
    return _ELLIPSE.format(cy=cy, rx=rx, ry=ry, left=cx - rx, right=cx + rx) if rx and ry else ""


_SHAPES: dict[str, Callable[[dict[str, str]], str]] = {  # as the data of a path
    "path": lambda of: of.get("d", "").strip(),
    "polyline": lambda of: f"M {of['points']}" if of.get("points", "").strip() else "",
    "polygon": lambda of: f"M {of['points']} Z" if of.get("points", "").strip() else "",
    "line": _line,
    "rect": _rectangle,
    "circle": _ellipse,
    "ellipse": _ellipse,
}
