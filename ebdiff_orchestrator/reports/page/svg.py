"""matplotlib figures: as SVG inside a page, whose text colour and grid they follow, light or dark; and as PNG."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from region_workers.storage.durable import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of Okabe and Ito, whom the colour-blind can tell apart; all readable on white and on near-black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
INK, GRID, PAGE = "#010203", "#040506", "#070809"  # stand for the page's own colours
_IN_THE_PAGE = {INK: "currentColor", GRID: "var(--grid)", PAGE: "var(--page)"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ebdiff",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}
_COLUMN_INCHES, _SQUARE_INCHES, _ROW_INCHES, _DPI = 6.0, 3.8, 3.2, 150  # of a PNG
_LONGEST_LABEL = 32
_REFERENCE = re.compile(r'(url\(#|href="#)([^")]+)')
_ID = re.compile(r' id="([^"]+)"')


def figure(draw: Callable[[Axes], None], numbers: itertools.count[int], width: float = 7.0, height: float = 2.6) -> str:
    """The SVG element of one pair of axes that `draw` fills; sizes in inches. `numbers` keeps ids of a page apart."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(cast(Any, _STYLE)):
        picture = Figure(figsize=(width, height), layout="constrained")
        draw(picture.subplots())
        output = io.StringIO()
        picture.savefig(output, format="svg", metadata={"Date": None}, transparent=True)
    return _for_the_page(output.getvalue(), f"f{next(numbers)}-")


def write_picture(
    file: Path,
    columns: Sequence[Sequence[Callable[[Axes], None]]],
    title: str | None = None,
    inches: tuple[float, float] = (_SQUARE_INCHES, _ROW_INCHES),
) -> None:
    """Draw axes, and pairs of them one above the other, in columns side by side, and write all as one PNG or .svg.

    `inches`: the width and height of axes that are alone in a column.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    widths = [_COLUMN_INCHES if len(draws) > 1 else inches[0] for draws in columns]
    size = (sum(widths), inches[1] * max(map(len, columns)))
    with mpl.rc_context(cast(Any, {**_STYLE, "grid.color": "#dddddd"})):
        picture = Figure(figsize=size, layout="constrained")
        if title is not None:
            picture.suptitle(title)
        places = picture.subfigures(1, len(columns), squeeze=False, width_ratios=widths)[0]
        for place, draws in zip(places, columns, strict=True):
            for axes, draw in zip(place.subplots(len(draws), squeeze=False)[:, 0], draws, strict=True):
                draw(axes)
        form = "svg" if file.suffix == ".svg" else "png"
        write_file(file, lambda temporary: picture.savefig(temporary, format=form, dpi=_DPI))


def label_of(name: str) -> str:
    """A name in a figure: of a long one its two ends, so that there is room for what it names."""
    half = _LONGEST_LABEL // 2 - 1
    return name if len(name) <= _LONGEST_LABEL else f"{name[:half]}...{name[-half:]}"


def _for_the_page(document: str, prefix: str) -> str:
    """The element alone: as wide as the page, in its colours, and with ids of its own where anything refers to them."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg))
    used = {match[2] for match in _REFERENCE.finditer(svg)}
    svg = _ID.sub(lambda match: f' id="{prefix}{match[1]}"' if match[1] in used else "", svg)
    svg = _REFERENCE.sub(rf"\g<1>{prefix}\g<2>", svg)
    for stand_in, colour in _IN_THE_PAGE.items():
        svg = svg.replace(stand_in, colour)
    return svg.replace("<svg", '<svg role="img"', 1)
