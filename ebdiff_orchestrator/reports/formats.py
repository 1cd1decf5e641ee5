"""How reports show texts, numbers and tables: in a terminal, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

MISSING = "-"
_BETWEEN = " | "  # as wide as what rich draws between two columns


@dataclass(frozen=True)
class TextTable:
    """Headings, rows of as many texts, and footnotes; the first column is left-aligned, the others right."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footnotes: tuple[str, ...] = ()


def duration(seconds: float) -> str:
    """hours:minutes:seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def number(value: float | None, form: str) -> str:
    """The value in a format such as `{:.2f}x`; a dash for None."""
    return MISSING if value is None else form.format(value)


def gib(size_bytes: int | None) -> str:
    """Bytes in GiB, of which the heading speaks."""
    return number(None if size_bytes is None else size_bytes / 2**30, "{:.2f}")


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
    """For people, at the terminal; columns that do not fit beside each other come in a table of their own below."""
    for columns in _columns_that_fit(table, console.width):
        drawn = Table(show_edge=False, pad_edge=False)
        for index in columns:
            drawn.add_column(Text(table.headings[index]), justify="right" if index else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*(Text(row[index]) for index in columns))
        console.print(drawn)
        console.print()
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


def _columns_that_fit(table: TextTable, width: int) -> list[list[int]]:
    """The columns in groups of at most `width` characters, each led by the first column."""
    widths = [max(map(len, column)) for column in zip(table.headings, *table.rows, strict=True)]
    groups, used = [[0]], widths[0]
    for index in range(1, len(widths)):
        if used + len(_BETWEEN) + widths[index] > width and len(groups[-1]) > 1:
            groups.append([0])
            used = widths[0]
        groups[-1].append(index)
        used += len(_BETWEEN) + widths[index]
    return groups
