"""How reports show texts, numbers and tables: in a terminal, as Markdown, as CSV."""

import csv
import io
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from region_workers.storage.places import check_no_url
from schemas.errors import user_error

MISSING = "-"
_BETWEEN = " | "  # as wide as what rich draws between two columns
_LONG_WORD = 20
Lines = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class TextTable:
    """Headings, rows of as many texts, and footnotes; the first column is left-aligned, the others right.

    `most_wanted`: the headings that a narrow terminal shows first, if it cannot show all; the others follow in order.
    `whole_with`: the option that shows all of them anywhere.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footnotes: tuple[str, ...] = ()
    most_wanted: tuple[str, ...] = ()
    whole_with: str = "--json"


def number(value: float | None, form: str) -> str:
    """The value in a format such as `{:.2f}x`; a dash for None."""
    return MISSING if value is None else form.format(value)


def gib(size_bytes: int | None) -> str:
    """Bytes in GiB, of which the heading speaks."""
    return number(None if size_bytes is None else size_bytes / 2**30, "{:.2f}")


def check_replaceable(option: str, file: Path, suffix: str) -> None:
    """UserError for a URL, and for a file that does not end in `suffix`, which nobody can have meant to lose."""
    check_no_url(file, option)
    if file.exists() and file.suffix.lower() != suffix:
        expected = f"a new file, or an older one that ends in {suffix}, to be replaced"
        raise user_error(option, file, expected, "Choose another name.")


def say(console: Console, *lines: str, **options: Any) -> None:
    """Print lines as they are: what rich takes for markup, as in a path's brackets, is none."""
    for line in lines:
        console.print(line, markup=False, highlight=False, **options)


def plain_table(headings: Sequence[str], left: Container[str], title: str | None = None, **column: Any) -> Table:
    """A table without a frame, to be filled; columns are right-aligned but for those in `left`."""
    table = Table(title=title, show_edge=False, pad_edge=False, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right", **column)
    return table


def print_table(table: TextTable, console: Console) -> None:
    """For people, at the terminal: one table in the first form that fits.

    As it is, its headings on several lines if need be; turned, the first column's texts as headings; or with as many
    of the most wanted columns as there is room for, and a line that names the others.
    """
    turned = tuple(zip(table.headings, *table.rows, strict=True))
    for lines in ((table.headings, *table.rows), turned):
        if (widths := _fitting_widths(lines, console.width)) is not None:
            _draw(lines, widths, console)
            say(console, *table.footnotes)
            return
    kept = _columns_that_fit(table, console.width)
    lines = tuple(tuple(cells[index] for index in kept) for cells in (table.headings, *table.rows))
    _draw(lines, _fitting_widths(lines, console.width), console)
    left_out = ", ".join(heading for index, heading in enumerate(table.headings) if index not in kept)
    say(console, f"Too narrow for: {left_out}. A wider terminal shows them, and so does {table.whole_with}.")
    say(console, *table.footnotes)


def as_markdown(table: TextTable) -> str:
    """A GitHub table, the footnotes as a list under it."""
    lines = [
        _markdown_row(table.headings),
        _markdown_row([":--", *["--:"] * (len(table.headings) - 1)]),
        *(_markdown_row(row) for row in table.rows),
    ]
    if table.footnotes:
        lines += ["", *(f"- {footnote}" for footnote in table.footnotes)]
    return "\n".join(lines) + "\n"


def as_csv(rows: Sequence[dict[str, object]]) -> str:
    """Plain values with a heading line; None is an empty field, a list or tuple is joined by slashes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "/".join(map(str, v)) if isinstance(v, list | tuple) else v for name, v in row.items()})
    return text.getvalue()


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _draw(lines: Lines, widths: Sequence[int] | None, console: Console) -> None:
    """The first line as the headings; without widths as rich folds it."""
    drawn = Table(show_edge=False, pad_edge=False)
    for index, heading in enumerate(lines[0]):
        width = None if widths is None else widths[index]
        drawn.add_column(Text(heading), justify="right" if index else "left", overflow="fold", width=width)
    for line in lines[1:]:
        drawn.add_row(*map(Text, line))
    console.print(drawn)
    console.print()


def _fitting_widths(lines: Lines, width: int) -> list[int] | None:
    """Of each column, so that all fit beside each other with their cells whole; None if they do not.

    Headings, and the first column's texts, may be wrapped between their words; they get the room that is left.
    """
    columns = list(zip(*lines, strict=True))
    widest = [max(map(len, column)) for column in columns]
    least = [max(_wrapped(heading), *map(len, cells), 1) for heading, *cells in columns]
    least[0] = max(map(_wrapped, columns[0]))
    left = width - sum(least) - len(_BETWEEN) * (len(columns) - 1)
    if left < 0:
        return None
    for index, most in enumerate(widest):
        more = min(left, most - least[index])
        least[index] += more
        left -= more
    return least


def _wrapped(text: str) -> int:
    """The width that a text needs on several lines; a very long word is broken."""
    return min(max(map(len, text.split()), default=1), _LONG_WORD)


def _columns_that_fit(table: TextTable, width: int) -> list[int]:
    """The first column and the most wanted others, in their order; at least two, whatever their width."""
    wanted = sorted(
        range(1, len(table.headings)),
        key=lambda index: (*table.most_wanted, *table.headings).index(table.headings[index]),
    )
    kept = [0, *wanted[:1]]
    for index in wanted[1:]:
        more = sorted([*kept, index])
        lines = tuple(tuple(cells[column] for column in more) for cells in (table.headings, *table.rows))
        if _fitting_widths(lines, width) is not None:
            kept = more
    return kept


def evenly_chosen(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` positions, evenly spread, the first and the last among them."""
    if count <= limit:
        return list(range(count))
    return sorted({round(index * (count - 1) / (limit - 1)) for index in range(limit)})
