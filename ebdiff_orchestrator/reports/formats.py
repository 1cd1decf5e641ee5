"""One table of texts with footnotes, as a terminal, Markdown or CSV shows it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

MISSING = "-"
_BETWEEN = " | "  # as wide as what rich draws between two columns


@dataclass(frozen=True)
class TextTable:
    """Headings, rows of as many texts, and footnotes; the first column is left-aligned, the others right."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footnotes: tuple[str, ...] = ()


def print_table(table: TextTable, console: Console) -> None:
    """For people, at the terminal; columns that do not fit beside each other come in a table of their own below."""
    for columns in _columns_that_fit(table, console.width):
        drawn = RichTable(show_edge=False, pad_edge=False)
        for index in columns:
            drawn.add_column(Text(table.headings[index]), justify="right" if index else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*(Text(row[index]) for index in columns))
        console.print(drawn)
        console.print()
    for footnote in table.footnotes:
        console.print(footnote, markup=False, highlight=False)


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
    """Plain values with a heading line; None is an empty field, a list is joined by slashes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "/".join(map(str, v)) if isinstance(v, list) else v for name, v in row.items()})
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
