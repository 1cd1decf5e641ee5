"""An SVG file's paths and shapes as strokes, with the transforms that hold for them.

Read by expat and not as a tree: a file's own entities are refused, others are never fetched, and what is not drawn (a
text, a picture, CSS) passes by.
"""

import re
from cmath import exp, phase
from collections.abc import Callable, Iterator
from math import ceil, pi, radians, sqrt, tan
from xml.parsers import expat

import numpy as np
import numpy.typing as npt

from region_workers.data.drawings import Stroke, UnreadableDrawingError

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


# All quantifiers are possessive, so that the time is linear in a text that does not fit.
_NUMBER = r"[+-]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d++)?+"
_COMMAND = re.compile(r"([MZLHVCSQTA])([^MZLHVCSQTA]*+)", re.IGNORECASE)
_NUMBERS, _SPACE = re.compile(_NUMBER, re.ASCII), " \t\r\n\f,"
_ARC = re.compile(  # whose flags may stand without a space between them
    rf"[\s,]*+({_NUMBER})" * 3 + r"[\s,]*+([01])" * 2 + rf"[\s,]*+({_NUMBER})" * 2, re.ASCII
)
_SIZES = {"M": 2, "Z": 0, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2, "A": 7}  # numbers of each command

_POINTS = 16  # of a Bezier curve; resampling then goes along straight lines between them
_SHARES = np.arange(1, _POINTS + 1) / _POINTS
_BERNSTEIN = np.stack(
    [(1 - _SHARES) ** 3, 3 * _SHARES * (1 - _SHARES) ** 2, 3 * _SHARES**2 * (1 - _SHARES), _SHARES**3]
)

Curve = tuple[complex, complex, complex, complex]  # a cubic Bezier; a point is x + iy


def strokes_of_path(data: str) -> Iterator[Stroke]:
    """The strokes of a path's attribute `d`, float64 [n, 2]: every subpath that is more than a point.

    Raises UnreadableDrawingError.
    """
    pen = _Pen()
    for letter, numbers in _commands(data):
        if letter in "Mm":
            yield from pen.lift()
        pen.go(letter, numbers)
        if letter in "Zz":
            yield from pen.lift()
    yield from pen.lift()


def _commands(data: str) -> Iterator[tuple[str, list[float]]]:
    """Each command with the numbers of one use of it; what stands as a small letter is relative."""
    end = 0
    for found in _COMMAND.finditer(data):
        letter, text = found.groups()
        if data[end : found.start()].strip(_SPACE) or (end == 0 and letter not in "Mm"):
            break
        numbers, size = _numbers_of(letter, text), _SIZES[letter.upper()]
        if size == 0 and not numbers:
            yield letter, []
        elif size == 0 or not numbers or len(numbers) % size:
            raise UnreadableDrawingError(f"a path has {len(numbers)} numbers after {letter}")
        for first in range(0, len(numbers), size or 1):
            yield letter, numbers[first : first + size]
            letter = {"M": "L", "m": "l"}.get(letter, letter)
        end = found.end()
    if data[end:].strip(_SPACE):
        raise UnreadableDrawingError(f"a path cannot go on, or begin, with {data[end : end + 20].strip(_SPACE)!r}")


def _numbers_of(letter: str, text: str) -> list[float]:
    texts: list[str] = []
    if letter in "Aa":
        end = 0
        while found := _ARC.match(text, end):
            texts += found.groups()
            end = found.end()
        rest = text[end:]
    else:
        texts, rest = _NUMBERS.findall(text), _NUMBERS.sub("", text)
    if rest.strip(_SPACE):
        raise UnreadableDrawingError(f"a path has {rest.strip(_SPACE)[:20]!r} after {letter}")
    return [float(number) for number in texts]


class _Pen:
    """Where a path stands: the curves since it last began, and what the next command may refer to."""

    def __init__(self) -> None:
        self._curves: list[Curve] = []
        self._at = self._start = 0j
        self._control, self._kind = 0j, ""  # the last control point, and of which kind of curve it is

    def lift(self) -> Iterator[Stroke]:
        """What was drawn since the last time, if anything was."""
        if self._curves:
            points = np.concatenate([[self._curves[0][0]], (np.array(self._curves) @ _BERNSTEIN).ravel()])
            yield np.stack([points.real, points.imag], axis=1)
        self._curves = []

    def go(self, letter: str, numbers: list[float]) -> None:
        """Carry out one command."""
        command, origin, kind = letter.upper(), self._at if letter.islower() else 0j, ""
        if command == "Z":
            if self._at != self._start:
                self._line(self._start)
        elif command == "H":
            self._line(complex(numbers[0] + origin.real, self._at.imag))
        elif command == "V":
            self._line(complex(self._at.real, numbers[0] + origin.imag))
        elif command == "A":
            self._arc(numbers[:5], origin + complex(*numbers[5:]))
        else:
            points = [origin + complex(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
            if command == "M":
                self._at = self._start = points[0]
            elif command == "L":
                self._line(points[0])
            else:
                kind = "cubic" if command in "CS" else "quadratic"
                first = [2 * self._at - self._control if kind == self._kind else self._at] if command in "ST" else []
                self._curve(*first, *points)
        self._kind = kind

    def _line(self, end: complex) -> None:
        third = (end - self._at) / 3
        self._curves.append((self._at, self._at + third, end - third, end))
        self._at = end

    def _curve(self, *points: complex) -> None:
        """A curve with one control point or two, and its end."""
        self._control, end = points[-2:]
        first, second = points[:2] if len(points) == 3 else (self._at, end)
        if len(points) == 2:  # the cubic curve that a quadratic one is
            first, second = (point + 2 / 3 * (self._control - point) for point in (self._at, end))
        self._curves.append((self._at, first, second, end))
        self._at = end

    def _arc(self, shape: list[float], end: complex) -> None:
        """An arc of an ellipse, by the notes on its implementation in SVG 1.1 (F.6), a quarter or less at a time."""
        rx, ry, degrees, large, sweep = shape
        if not rx or not ry or end == self._at:
            self._line(end)
            return
        turn, rx, ry = exp(1j * radians(degrees)), abs(rx), abs(ry)
        start, stop = (_scaled(point / turn, 1 / rx, 1 / ry) for point in (self._at, end))  # on a circle of radius 1
        half = (stop - start) / 2
        size = max(1.0, abs(half))  # radii too small to reach grow so that they do
        side = (1 if large != sweep else -1) * sqrt(max(0.0, size**2 - abs(half) ** 2))
        centre = (start + stop) / 2 + 1j * half / abs(half) * side
        first, angle = phase(start - centre), phase((stop - centre) / (start - centre))
        if angle and (angle > 0) != bool(sweep):
            angle -= 2 * pi if angle > 0 else -2 * pi
        parts = max(1, ceil(abs(angle) / (pi / 2) - 1e-9))
        handle = 4 / 3 * tan(angle / parts / 4)
        for part in range(parts):
            here, there = (size * exp(1j * (first + angle * (part + more) / parts)) for more in (0, 1))
            on_circle = (here, here * (1 + 1j * handle), there * (1 - 1j * handle), there)
            a, b, c, d = (_scaled(centre + point, rx, ry) * turn for point in on_circle)
            self._curves.append((a, b, c, d))
        self._at = end


def _scaled(point: complex, x: float, y: float) -> complex:
    return complex(point.real * x, point.imag * y)
