"""Reports as tables: framed in a terminal, plain columns elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from headrace.errors import MissingExtraError
from headrace.extras import import_extra


def as_text(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in plain columns; numbers stand to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headings, *rows)
    ]
    return "\n".join(lines)


def show(headings: Sequence[str], rows: Sequence[Sequence[str]], best: int, why: str) -> None:
    """Print a table with its row ``best`` marked, and a sentence below it."""
    try:
        tables = import_extra("rich.table", "cli")
        console = import_extra("rich.console", "cli").Console()
    except MissingExtraError:
        console = None
    if console is None or not sys.stdout.isatty():
        print(as_text(headings, rows), why, sep="\n")
        return
    table = tables.Table(*headings, box=import_extra("rich.box", "cli").ROUNDED)
    for column in table.columns:
        column.justify = "right"
    for number, row in enumerate(rows):
        table.add_row(*row, style="bold green" if number == best else None)
    console.print(table)
    console.print(why, markup=False, highlight=False)


def number(value: float | None) -> str:
    """Return a number with three digits that count; a dash for one that is not known."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def mebibytes(size_bytes: int | None) -> str:
    """Return bytes as MiB."""
    return number(None if size_bytes is None else size_bytes / (1 << 20))
