"""What a column is, and the numbers that stand for it: learnt once, then the same for all rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np

from headrace.data.gatherer import Array
from headrace.data.tables.csv.dates import Moment, moment_of
from headrace.data.tables.csv.doubts import is_called_like_a_row_number
from headrace.data.tables.csv.form import Notation
from headrace.data.tables.prepare.values import as_texts
from headrace.extras import import_extra

_ENOUGH = 10  # rows or texts, from which on it says something that all differ
_READABLE = 0.9  # of the rows, from which on texts that are no numbers are missing ones
_ODD_TEXTS = 3
_UNITS = ("$", "€", "£", "%")
_DAY_S = 86_400.0
_PERIODS_S = {"year": 365.2425 * _DAY_S, "week": 7 * _DAY_S, "day": _DAY_S}
_SECONDS = {"date": _DAY_S, "datetime": 1.0, "time": 1.0}


@dataclass(frozen=True)
class Number:
    """Scaled to mean 0 and spread 1; what is missing becomes the median, and is marked."""

    kind: ClassVar[str] = "number"
    name: str
    mean: float
    spread: float
    median: float
    marks_missing: bool
    decimal: str = "."
    thousands: str | None = None
    units: tuple[str, ...] = ()
    nulls: tuple[str, ...] = ()  # texts of the training rows that are no numbers

    @property
    def width(self) -> int:
        """How many numbers stand for a value."""
        return 2 if self.marks_missing else 1

    def read(self, column: Array) -> Array:
        """Return the numbers of a column, NaN where there is none."""
        if column.dtype.kind == "f":
            return np.where(np.isfinite(column), column, np.nan)
        if column.dtype.kind == "M":
            return np.full(len(column), np.nan)
        return _read(Notation(self.decimal, self.thousands, tuple(self.units)), column)

    def numbers(self, column: Array) -> Array:
        """Return what stands for each value: shape (rows, width)."""
        values = self.read(column)
        missing = np.isnan(values)
        scaled = _scaled(np.where(missing, self.median, values), self.mean, self.spread)
        return np.stack([scaled, missing][: self.width], 1).astype(np.float32)

    def unread(self, column: Array) -> Array:
        """Return which values are there and are no numbers: shape (rows,)."""
        expected = np.array([value in self.nulls for value in column.tolist()], bool)
        found: Array = np.isnan(self.read(column)) & ~missing_of(column) & ~expected
        return found


@dataclass(frozen=True)
class Date:
    """Seconds, scaled, and where in the year, the week and the day they are, as points of a circle.

    A missing one is the mean and the middle of each circle.
    """

    kind: ClassVar[str] = "date"
    name: str
    mean: float
    spread: float
    marks_missing: bool
    periods: tuple[str, ...]
    moment: str = "datetime"
    format: str | None = None

    @property
    def width(self) -> int:
        """How many numbers stand for a value."""
        return 1 + 2 * len(self.periods) + self.marks_missing

    def read(self, column: Array) -> Array:
        """Return the seconds of a column, NaN where there is none."""
        if column.dtype.kind == "M":
            return _seconds(column)
        if column.dtype.kind == "f":
            return np.full(len(column), np.nan)
        return _read_moments(Moment(self.moment, self.format), column)  # type: ignore[arg-type]

    def numbers(self, column: Array) -> Array:
        """Return what stands for each value: shape (rows, width)."""
        seconds = self.read(column)
        missing = np.isnan(seconds)
        found = [_scaled(np.where(missing, self.mean, seconds), self.mean, self.spread)]
        for period in self.periods:
            angle = 2 * math.pi * np.where(missing, 0, seconds) / _PERIODS_S[period]
            found += [np.where(missing, 0, np.sin(angle)), np.where(missing, 0, np.cos(angle))]
        return np.stack([*found, missing][: self.width], 1).astype(np.float32)

    def unread(self, column: Array) -> Array:
        """Return which values are there and are no dates: shape (rows,)."""
        return np.isnan(self.read(column)) & ~missing_of(column)


@dataclass(frozen=True)
class Category:
    """Numbered from 1; 0 is for what was seen once, or never, or is missing where nothing was."""

    kind: ClassVar[str] = "category"
    name: str
    texts: tuple[str, ...]
    marks_missing: bool

    @property
    def size(self) -> int:
        """How many codes there are."""
        return 1 + len(self.texts) + self.marks_missing

    def codes(self, column: Array) -> Array:
        """Return the code of each value: shape (rows,), int64."""
        known = {text: code for code, text in enumerate(self.texts, 1)}
        missing = self.size - 1 if self.marks_missing else 0
        found = [missing if t is None else known.get(t, 0) for t in as_texts(column.tolist())]
        return np.array(found, np.int64)


Kind: TypeAlias = Number | Date | Category
KINDS: Mapping[str, Any] = {kind.kind: kind for kind in (Number, Date, Category)}


@dataclass(frozen=True)
class Asked:
    """What the caller says of the columns."""

    named: frozenset[str] = frozenset()  # to be used, whatever they look like
    categories: frozenset[str] = frozenset()
    dates: Mapping[str, Moment | None] = ()  # type: ignore[assignment]
    decimal: str | None = None


def learn(name: str, column: Array, asked: Asked) -> tuple[Kind | None, str]:
    """Return what a column is; None, and why, if it says nothing about other rows.

    The second value is otherwise what may not be meant, or empty.
    """
    missing = missing_of(column)
    if missing.all():
        return None, "nothing is there"
    if name in asked.categories:
        return _category(name, as_texts(column.tolist()), wanted=True)
    if column.dtype.kind == "f":
        return _number(name, column, asked, Notation())
    if column.dtype.kind == "M":
        return _date(name, _seconds(column), Moment("datetime", None)), ""
    return _of_texts(name, column, column[~missing], asked)


def _of_texts(name: str, column: Array, there: Array, asked: Asked) -> tuple[Kind | None, str]:
    distinct = list(dict.fromkeys(there.tolist()))
    moments = _moments(name, distinct, asked)
    if moments:
        note = f"{distinct[0]!r} is read as {moments[0].format}" if len(moments) > 1 else ""
        return _date(name, _read_moments(moments[0], column), moments[0]), note
    notation, odd = _notation(there, distinct, asked.decimal)
    if notation is not None:
        kind, said = _number(name, column, asked, notation, odd)
        taken = f"{' and '.join(map(repr, odd))} counts as missing" if odd else ""
        return kind, said or taken
    return _category(name, column, wanted=name in asked.named)


def missing_of(column: Array) -> Array:
    """Return which values are missing: shape (rows,), bool."""
    if column.dtype.kind == "M":
        return np.isnat(column)
    if column.dtype.kind == "f":
        return np.isnan(column)
    return np.array([value is None for value in column.tolist()], bool)


# ---- numbers


def _number(
    name: str, column: Array, asked: Asked, notation: Notation, odd: Sequence[str] = ()
) -> tuple[Kind | None, str]:
    plain = Number(
        name, 0, 1, 0, False, notation.decimal, notation.thousands, notation.units, tuple(odd)
    )
    values = plain.read(column)
    known = values[~np.isnan(values)]
    marks = len(known) < len(values)
    if not len(known):
        return None, "no finite number is there"
    if name not in asked.named and _is_row_number(name, known, len(values)):
        return None, "a number of its own in each row, called like an id"
    if name not in asked.named and known.min() == known.max() and not marks:
        return None, f"always {known[0]:g}"
    mean, spread = _scale(known)
    median = float(np.median(known))
    return replace(plain, mean=mean, spread=spread, median=median, marks_missing=marks), ""


def _is_row_number(name: str, known: Array, rows: int) -> bool:
    all_differ = len(known) == rows >= _ENOUGH and len(np.unique(known)) == rows
    whole = bool((known == np.floor(known)).all())
    return all_differ and whole and is_called_like_a_row_number(name)


def _scale(known: Array) -> tuple[float, float]:
    """Return mean and spread, of numbers as large as there are."""
    largest = float(np.abs(known).max()) or 1.0
    part = known / largest
    mean, spread = float(part.mean()) * largest, float(part.std()) * largest
    # Rounding alone makes a spread of numbers that are all the same.
    return mean, spread if spread > 1e-12 * largest else 1.0


def _scaled(values: Array, mean: float, spread: float) -> Array:
    with np.errstate(over="ignore"):
        found: Array = np.clip(values / spread - mean / spread, -1e6, 1e6)
    return found


def _read(notation: Notation, column: Array) -> Array:
    seen: dict[str | None, float] = {None: math.nan}
    for text in dict.fromkeys(column.tolist()):
        number = None if text is None else notation.read(text)
        seen[text] = number if number is not None and math.isfinite(number) else math.nan
    return np.array([seen[text] for text in column.tolist()], np.float64)


def _notations(decimal: str | None) -> list[Notation]:
    dots = [Notation(), Notation(thousands=","), Notation(thousands=" "), Notation(thousands="'")]
    commas = [Notation(","), Notation(",", "."), Notation(",", " "), Notation(",", "'")]
    found = {".": dots, ",": [*commas, dots[0]]}.get(decimal or "", [dots[0], *commas, *dots[1:]])
    return [*found, *(Notation(n.decimal, n.thousands, _UNITS) for n in found)]


def _notation(
    there: Array, distinct: Sequence[str], decimal: str | None
) -> tuple[Notation | None, list[str]]:
    """Return how numbers are written, if that is what the texts are, and the few that are none."""
    counts = Counter(there.tolist())
    best: tuple[Notation | None, list[str]] = None, []
    for notation in _notations(decimal):
        odd = [text for text in distinct if notation.read(text) is None]
        if not odd:
            return notation, []
        rows = sum(counts[text] for text in odd)
        few = len(odd) <= min(_ODD_TEXTS, (len(distinct) - 1) // 10)
        better = best[0] is None or len(odd) < len(best[1])
        if few and better and rows <= (1 - _READABLE) * len(there):
            best = notation, odd
    return best


# ---- dates


def _moments(name: str, distinct: Sequence[str], asked: Asked) -> list[Moment]:
    given = dict(asked.dates).get(name)
    return [given] if given is not None else moment_of(distinct)


def _date(name: str, seconds: Array, moment: Moment) -> Kind:
    known = seconds[~np.isnan(seconds)]
    mean, spread = _scale(known) if len(known) else (0.0, 1.0)
    periods = []
    if len(known):
        span = float(known.max() - known.min())
        if moment.kind != "time":
            periods += ["year"] * (span > _PERIODS_S["year"] / 4) + ["week"] * (span > 6 * _DAY_S)
        periods += ["day"] * bool((known % _DAY_S != 0).any())
    marks = len(known) < len(seconds)
    return Date(name, mean, spread, marks, tuple(periods), moment.kind, moment.format)


def _seconds(column: Array) -> Array:
    seconds = column.astype("datetime64[us]").astype(np.int64) / 1e6
    return np.where(np.isnat(column), np.nan, seconds)


def _read_moments(moment: Moment, column: Array) -> Array:
    pl = import_extra("polars", "tables")
    found = moment.numbers(pl.Series(column.tolist(), dtype=pl.String))
    seconds = found.cast(pl.Float64).fill_null(math.nan).to_numpy() * _SECONDS[moment.kind]
    return np.asarray(seconds, np.float64)


# ---- categories


def _category(name: str, column: Array, *, wanted: bool) -> tuple[Kind | None, str]:
    counts = Counter(text for text in column.tolist() if text is not None)
    rows = sum(counts.values())
    if not wanted and len(counts) >= _ENOUGH and len(counts) * 2 > rows:
        return None, f"{len(counts):,} different texts in {rows:,} rows: names, ids or sentences"
    marks = rows < len(column)
    if len(counts) == 1 and not marks and not wanted:
        return None, f"always {next(iter(counts))!r:.60}"
    often = [text for text, count in counts.items() if count > 1]
    kept = often if len(often) > 1 else list(counts)  # of a few rows, all of them
    return Category(name, tuple(sorted(kept)), marks), ""
