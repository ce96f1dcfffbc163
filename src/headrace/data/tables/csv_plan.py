"""What each column of a CSV file is: numbers, truth values or text, decided by its first rows."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeAlias

from headrace.data.tables.arrow import Missing, check_names
from headrace.data.text.reading import compression_of
from headrace.errors import MissingColumnError, SourceError

Kind: TypeAlias = Literal["integer", "number", "boolean", "text"]
Dtype: TypeAlias = Literal["float32", "float64", "int64"]
HEAD_ROWS = 1_000
_SEPARATORS = ";\t|,"

TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Form:
    """How a CSV file is written."""

    separator: str
    has_header: bool
    null_values: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What is asked of a CSV file: its features (None is all but the target) and its target.

    ``known`` gives the categories of columns that are text by decree: None where they are yet to
    be found.
    """

    features: tuple[str, ...] | None
    target: str | None
    dtype: Dtype
    missing: Missing
    known: Mapping[str, tuple[str, ...] | None]
    target_dtype: Dtype | None = None


@dataclass(frozen=True)
class Plan:
    """The columns of a CSV file, and what is made of them."""

    form: Form
    wanted: Wanted
    names: tuple[str, ...]
    features: tuple[str, ...]
    kinds: Mapping[str, Kind]
    padded: frozenset[str]  # numbers with spaces behind them
    row_bytes: float  # what a row takes in the file, about

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read: the last one too, as a row that is cut short lacks it."""
        target = () if self.wanted.target is None else (self.wanted.target,)
        return tuple(dict.fromkeys((*self.features, *target, self.names[-1])))

    @property
    def target_dtype(self) -> Dtype:
        """The type of the target."""
        if self.wanted.target_dtype is not None:
            return self.wanted.target_dtype
        is_number = self.wanted.target is not None and self.kinds[self.wanted.target] == "number"
        return self.wanted.dtype if is_number else "int64"

    def category_columns(self) -> list[str]:
        """The columns that become codes."""
        target = () if self.wanted.target is None else (self.wanted.target,)
        return [name for name in (*self.features, *target) if self.kinds[name] == "text"]


def header(path: str, form: Form) -> tuple[str, ...]:
    """Return the names of the columns: the first line, or ``column_1`` and so on without one.

    Raises:
        SourceError: the file is empty or not UTF-8, or two columns have one name.
    """
    record = next(records(path, form), None)
    if record is None:
        raise SourceError(f"{path} is empty. Write a line with the names of its columns, and rows.")
    if not form.has_header:
        return tuple(f"column_{number}" for number in range(1, len(record[1]) + 1))
    names = tuple(record[1])
    for number, name in enumerate(names):
        if name in names[:number]:
            raise SourceError(
                f"{path}, line 1: two columns are called {name!r} (columns "
                f"{names.index(name) + 1} and {number + 1}). Give each its own name."
            )
    return names


def records(path: str, form: Form) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a CSV file, each with the number of its first line.

    Raises:
        SourceError: a line is not UTF-8, or quotes are not closed.
    """
    with open(path, "rb") as file:
        reader = csv.reader(_lines(path, file), delimiter=form.separator, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise SourceError(
                    f"{path}, line {line:,}: {error}. Each row is a line that ends in a line feed; "
                    f"a field with quotes in it stands in quotes, and those within are doubled."
                ) from None
            yield line, record


def _lines(path: str, file: Any) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{path}, line {number:,}, byte {error.start}: not UTF-8 ({error.reason}). "
                f"{_remedy(path)}"
            ) from None


def _remedy(path: str) -> str:
    """Say what to do about a file that is not UTF-8, by how it begins."""
    compression = compression_of(path)
    if compression is not None:
        program = {"gzip": "gunzip", "zstd": "unzstd"}[compression]
        return f"It is compressed: write {program} {path}, and read the file that it makes."
    with open(path, "rb") as file:
        is_utf_16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    name, known = ("utf-16", "") if is_utf_16 else ("latin1", ", if it is Latin-1")
    return f"Convert the file: iconv -f {name} -t utf-8 {path} > utf8.csv{known}."


def make_plan(path: str, names: tuple[str, ...], form: Form, wanted: Wanted) -> Plan:
    """Decide what the columns of a file are by its first rows.

    Raises:
        SourceError: no rows, or no features.
        MissingColumnError: a column that is not there.
    """
    by_decree = [name for name, known in wanted.known.items() if known is None]
    target = [] if wanted.target is None else [wanted.target]
    try:
        check_names(names, [*(wanted.features or ()), *target, *by_decree], path)
    except MissingColumnError as error:
        other = [mark for mark in _SEPARATORS if len(names) == 1 and mark in names[0]]
        if not other:
            raise
        raise MissingColumnError(f"{error} Write separator={other[0]!r}.") from None
    features = wanted.features or tuple(name for name in names if name != wanted.target)
    if not features:
        raise SourceError(f"{path} has no columns but the target. Write features= with some.")
    head, size = _head(path, form, len(names))
    if not head:
        raise SourceError(f"{path} has no rows below its header.")
    kinds: dict[str, Kind] = {}
    padded = set()
    for name, fields in zip(names, zip(*head, strict=True), strict=True):
        there = [field for field in fields if field not in form.null_values]
        kinds[name] = "text" if name in wanted.known else _kind(there)
        if any(field[-1:].isspace() for field in there):
            padded.add(name)
    return Plan(form, wanted, names, features, kinds, frozenset(padded), size / len(head))


def _head(path: str, form: Form, width: int) -> tuple[list[list[str]], int]:
    """Return the first rows, and how many characters they have.

    Raises:
        SourceError: one has another number of fields than there are columns.
    """
    rows = islice(records(path, form), int(form.has_header), HEAD_ROWS + int(form.has_header))
    head = []
    for line, record in rows:
        problem = width_problem(record, width, form)
        if problem is not None:
            raise SourceError(f"{path}, line {line:,}{problem}")
        head.append(record or [""])
    return head, sum(len(field) + 1 for record in head for field in record)


def width_problem(record: Sequence[str], width: int, form: Form) -> str | None:
    """Say what is wrong with the number of a row's fields; None if nothing is."""
    if len(record) == width or (not record and width == 1):
        return None
    if not record:
        return " is empty. Remove it."
    return (
        f" has {len(record)} fields, but there are {width} columns. Give each row as many, and "
        f"put a field with a {form.separator!r} in it into quotes."
    )


def reading(form: Form, types: Mapping[str, Any]) -> dict[str, Any]:
    """Return how polars is to read a file whose columns have these types."""
    return {
        "separator": form.separator,
        "has_header": form.has_header,
        "null_values": list(form.null_values),
        "infer_schema": False,
        ("schema_overrides" if form.has_header else "schema"): dict(types),
    }


def _kind(fields: Sequence[str]) -> Kind:
    if all(as_number(field) is not None for field in fields):
        return "integer" if fields and all(map(_is_integer, fields)) else "number"
    if all(field.lower() in TRUTH for field in fields):
        return "boolean"
    return "text"


def _is_integer(field: str) -> bool:
    return field.strip().lstrip("+-").isdecimal()


def check_mixed(path: str, name: str, texts: Sequence[str]) -> None:
    """Check that a column of text has no numbers in it, unless it is said to be categories.

    Raises:
        SourceError: it has, so that it may be a column of numbers with something else in it.
    """
    numbers = [text for text in texts if as_number(text) is not None]
    if numbers:
        other = next((text for text in texts if as_number(text) is None), "")
        raise SourceError(
            f"{path}, column {name!r} has numbers and text, as {numbers[0]!r} and {other!r}. Write "
            f"categories=[{name!r}] if they are categories, or null_values=[{other!r}] if that is "
            f"how a missing number is written."
        )


def as_number(text: str) -> float | None:
    """Return the number that a field says, None if it says none; as polars reads it."""
    if "_" in text or not text.isascii():  # Python admits 1_000
        return None
    try:
        return float(text)
    except ValueError:
        return None
