"""Which separator a CSV file has, by its first lines."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from headrace.data.tables.csv.form import Form, Notation
from headrace.data.tables.csv.reading import is_blank, opened, shown
from headrace.errors import SourceError

SEPARATORS = "\t;|,"
_LINES = 200
_LINE_BYTES = 1 << 20
_NUMBERS = (Notation(), Notation(","), Notation(",", "."), Notation(thousands=","))


class _Guess(NamedTuple):
    separator: str
    width: int
    share: float  # of fields that are numbers


def find_separator(path: str, form: Form) -> Form:
    """Return how a file is written with the separator that it has.

    Raises:
        SourceError: none makes rows of one width.
    """
    lines = _lines(path, form)
    found = _guesses(lines, form, SEPARATORS)
    if found:
        return replace(form, separator=found[0].separator)
    if not any(mark in line for mark in SEPARATORS for line in lines):
        return replace(form, separator=",")  # one column
    raise SourceError(
        f"{shown(path)}: no separator of {', '.join(map(repr, SEPARATORS))} makes rows of as many "
        f"fields as the first line has. Write separator= with that of the file."
    )


def hint_of_separator(path: str, form: Form, width: int) -> str:
    """Return what to write where another separator than that of ``form`` fits better."""
    if width > 2:
        return ""
    lines = _lines(path, form)
    own = _guesses(lines, form, form.mark)
    others = "".join(mark for mark in SEPARATORS if mark != form.mark)
    found = _guesses(lines, form, others)
    if not found and form.mark != " ":
        spaced = _guesses(lines, replace(form, skipinitialspace=True), " ")
        if spaced and spaced[0].share > 0.5 and not own:
            return " Write separator=' ', skipinitialspace=True."
    if not found or (own and own[0].width >= found[0].width):
        return ""
    return f" Write separator={found[0].separator!r}."


def _lines(path: str, form: Form) -> list[str]:
    """Return the first lines, as far as they are text."""
    with opened(path, form) as file:
        raw = list(islice(iter(lambda: file.readline(_LINE_BYTES), b""), _LINES))
    lines = [line.decode("utf-8", "replace") for line in raw]
    comment = form.comment
    return [line for line in lines if not (comment is not None and line.startswith(comment))]


def _guesses(lines: Sequence[str], form: Form, marks: str) -> list[_Guess]:
    """Return the separators that divide all lines into as many columns, the best one first."""
    found = []
    for mark in marks:
        reader = csv.reader(lines, delimiter=mark, skipinitialspace=form.skipinitialspace)
        try:
            table = [record for record in reader if not is_blank(record)]
        except csv.Error:
            continue
        if len(lines) == _LINES and table:
            table.pop()  # it may be cut within a quoted field
        if not table or len(table[0]) < 2 or len({len(record) for record in table}) > 1:
            continue
        fields = [field for record in table[1:] for field in record if field]
        share = sum(map(_is_number, fields)) / len(fields) if fields else 0.0
        found.append(_Guess(mark, len(table[0]), share))
    order = SEPARATORS + " "
    return sorted(found, key=lambda guess: (-round(guess.share, 1), order.index(guess.separator)))


def _is_number(field: str) -> bool:
    return any(notation.read(field) is not None for notation in _NUMBERS)
