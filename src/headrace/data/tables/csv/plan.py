"""What each column of a CSV file is, decided by its first rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeAlias

from headrace.data.tables.arrow import Missing, check_names
from headrace.data.tables.csv.dates import Moment, moment_of
from headrace.data.tables.csv.form import Form
from headrace.data.tables.csv.reading import (
    first_record,
    is_blank,
    records,
    rows,
    shown,
    width_problem,
)
from headrace.data.tables.csv.sniff import hint_of_separator
from headrace.errors import MissingColumnError, SourceError

Kind: TypeAlias = Literal["integer", "number", "boolean", "text", "moment"]
Dtype: TypeAlias = Literal["float32", "float64", "int64"]
HEAD_ROWS = 1_000

TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Wanted:
    """What is asked of a CSV file: its features (None is all but the target) and its target.

    ``known`` gives the categories of columns that are text by decree: None where they are yet to
    be found; ``dates`` the columns of dates in the same way.
    """

    features: tuple[str, ...] | None
    target: str | None
    dtype: Dtype
    missing: Missing
    known: Mapping[str, tuple[str, ...] | None]
    dates: Mapping[str, Moment | None]
    target_dtype: Dtype | None = None


@dataclass(frozen=True)
class Plan:
    """The columns of a CSV file, and what is made of them."""

    form: Form
    wanted: Wanted
    names: tuple[str, ...]
    features: tuple[str, ...]
    kinds: Mapping[str, Kind]
    moments: Mapping[str, Moment]
    as_text: frozenset[str]  # numbers that polars reads as text: with spaces, in a notation
    head: Mapping[str, tuple[str, ...]]  # the first fields of each column
    empty: str | None  # a last column without name and values: each row ends in a separator

    @property
    def used(self) -> tuple[str, ...]:
        """The features and the target."""
        target = () if self.wanted.target is None else (self.wanted.target,)
        return tuple(dict.fromkeys((*self.features, *target)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read: the last one too, as a row that is cut short lacks it."""
        return tuple(dict.fromkeys((*self.used, self.names[-1])))

    @property
    def target_dtype(self) -> Dtype:
        """The type of the target."""
        if self.wanted.target_dtype is not None:
            return self.wanted.target_dtype
        target = self.wanted.target
        is_number = target is not None and self.kinds[target] in ("number", "moment")
        return self.wanted.dtype if is_number else "int64"

    def dtype_of(self, name: str) -> Dtype:
        """The type that a column's numbers have in the end."""
        return self.target_dtype if name == self.wanted.target else self.wanted.dtype

    def category_columns(self) -> list[str]:
        """The columns that become codes."""
        return [name for name in self.used if self.kinds[name] == "text"]

    def there(self, name: str) -> list[str]:
        """The first fields of a column that are not missing."""
        nulls = frozenset(self.form.null_values)
        return [field for field in self.head[name] if field not in nulls]


def header(path: str, form: Form) -> tuple[str, ...]:
    """Return the names of the columns: the first line, or ``column_1`` and so on without one.

    Raises:
        SourceError: the file is empty or not UTF-8, or two columns have one name.
    """
    record = first_record(records(path, form))
    if record is None:
        raise SourceError(f"{path} is empty. Write a line with the names of its columns, and rows.")
    line, names = record
    if not form.is_named:
        return tuple(f"column_{number}" for number in range(1, len(names) + 1))
    for number, name in enumerate(names):
        if name in names[:number]:
            hint = ""
            if form.has_header is None and any(map(_is_value, names)):
                hint = " If this line is a row, write has_header=False."
            raise SourceError(
                f"{shown(path)}, line {line}: two columns are called {name!r} (columns "
                f"{names.index(name) + 1} and {number + 1}). Give each its own name.{hint}"
            )
    _check_is_table(path, names)
    return tuple(names)


def _is_value(name: str) -> bool:
    return not name or Form().notation.read(name) is not None


def _check_is_table(path: str, names: Sequence[str]) -> None:
    first = names[0].lstrip().lower()
    for beginning, what, remedy in (
        ("{", "JSON", "headrace.data.JSONLines(path), if each line is a value"),
        ("[{", "JSON", "json.load(open(path)), and give the list to a DataLoader"),
        ("<!doctype", "an HTML page", "the address of the file itself, and load it again"),
        ("<html", "an HTML page", "the address of the file itself, and load it again"),
        ("version https://git-lfs", "a pointer of Git LFS", "git lfs pull"),
    ):
        if first.startswith(beginning):
            raise SourceError(f"{shown(path)} is no table but {what}: write {remedy}.")


def make_plan(path: str, names: tuple[str, ...], form: Form, wanted: Wanted) -> Plan:
    """Decide what the columns of a file are by its first rows.

    Raises:
        SourceError: no rows, or no features.
        MissingColumnError: a column that is not there.
    """
    _check_columns(path, names, form, wanted)
    head = _head(path, form, len(names))
    if not head:
        raise SourceError(f"{shown(path)} has no rows below its header.")
    fields = dict(zip(names, zip(*head, strict=True), strict=True))
    last = names[-1]
    no_value = all(not field or field.isspace() for field in fields[last])
    is_empty = len(names) > 1 and not last.strip() and no_value and last not in _asked(wanted)
    features = wanted.features or tuple(
        name for name in names if name != wanted.target and not (is_empty and name == last)
    )
    if not features:
        raise SourceError(f"{path} has no columns but the target. Write features= with some.")
    kinds: dict[str, Kind] = {}
    moments: dict[str, Moment] = {}
    as_text = set()
    nulls = frozenset(form.null_values)
    for name, column in fields.items():
        there = [field for field in column if field not in nulls]
        if name in wanted.dates:
            kinds[name] = "moment"
            moments[name] = wanted.dates[name] or _moment(path, name, there)
        else:
            kinds[name] = "text" if name in wanted.known else _kind(there, form)
        if not form.notation.is_plain or any(field[-1:].isspace() for field in there):
            as_text.add(name)
    return Plan(
        form,
        wanted,
        names,
        features,
        kinds,
        moments,
        frozenset(as_text),
        fields,
        last if is_empty else None,
    )


def _asked(wanted: Wanted) -> list[str]:
    target = [] if wanted.target is None else [wanted.target]
    return [*(wanted.features or ()), *target]


def _check_columns(path: str, names: tuple[str, ...], form: Form, wanted: Wanted) -> None:
    by_decree = [name for name, known in wanted.known.items() if known is None]
    asked = [*_asked(wanted), *by_decree, *wanted.dates]
    try:
        check_names(names, asked, shown(path))
    except MissingColumnError as error:
        hint = hint_of_separator(path, form, len(names))
        absent = next(name for name in asked if name not in names)
        spaced = [name for name in names if name.strip() == absent.strip()]
        if not hint and spaced:
            hint = f" {spaced[0]!r} has spaces: write skipinitialspace=True, or that name."
        elif not hint:
            like = [name for name in names if name.casefold() == absent.casefold()]
            hint = f" Write {like[0]!r}." if like else ""
        if not hint and form.is_named and any(map(_is_value, names)):
            hint = " If line 1 is a row, write has_header=False: names are column_1 and so on."
        raise MissingColumnError(f"{error}{hint}") from None
    hint = hint_of_separator(path, form, len(names))
    if hint and len(names) == 1:
        raise SourceError(f"{shown(path)} has one column, {names[0]!r}.{hint}")


def _moment(path: str, name: str, there: Sequence[str]) -> Moment:
    found = moment_of(there)
    if len(found) == 1:
        return found[0]
    shown_texts = " and ".join(map(repr, dict.fromkeys(there[:2])))
    if found:
        raise SourceError(
            f"{shown(path)}, column {name!r}: {shown_texts} have the day first, or the month. "
            f"Write dates={{{name!r}: {found[0].format!r}}} or {{{name!r}: {found[1].format!r}}}."
        )
    raise SourceError(
        f"{shown(path)}, column {name!r}: no one format of dates is found in {shown_texts}. Write "
        f"it: dates={{{name!r}: '%d.%m.%Y %H:%M:%S'}}, and null_values= with what is no date."
    )


def _head(path: str, form: Form, width: int) -> list[list[str]]:
    """Return the first rows.

    Raises:
        SourceError: one has another number of fields than there are columns.
    """
    source = records(path, form)
    if form.is_named:
        first_record(source)
    head = []
    for line, record in islice(rows(source, width), HEAD_ROWS):
        problem = width_problem(record, width, form)
        if problem is not None:
            hint = hint_of_separator(path, form, width)
            raise SourceError(f"{shown(path)}, line {line:,}{problem}{hint}")
        head.append([""] if is_blank(record) and width == 1 else record)
    return head


def _kind(fields: Sequence[str], form: Form) -> Kind:
    if all(form.notation.read(field) is not None for field in fields):
        whole = fields and all(is_integer(field, form) for field in fields)
        return "integer" if whole else "number"
    if all(field.lower() in TRUTH for field in fields):
        return "boolean"
    return "text"


def is_integer(field: str, form: Form) -> bool:
    """Say whether a number is written as a whole one."""
    if form.notation.is_plain:
        return field.strip().lstrip("+-").isdecimal()
    number = form.notation.read(field)
    return number is not None and number.is_integer() and form.notation.decimal not in field
