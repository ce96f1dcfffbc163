"""Dates and times in text: of which format they are, and the numbers that stand for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from headrace.errors import OptionError
from headrace.extras import import_extra

MomentKind: TypeAlias = Literal["date", "datetime", "time"]

MEANING: dict[MomentKind, str] = {
    "date": "days since 1970-01-01",
    "datetime": "seconds since 1970-01-01 00:00 UTC",
    "time": "seconds",
}

_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_CLOCK = r"(?P<h>\d{1,2}):\d\d(?P<s>:\d\d(?:\.\d{1,9})?)?(?P<p>\s?[APap][Mm])?"
_ZONE = r"(?P<z>\s?(?:Z|UTC|[+-]\d\d:?\d\d))?"
_DIGITS = re.compile(
    rf"(?P<a>\d{{1,4}})(?P<x>[-/.])(?P<b>\d{{1,2}})(?P=x)(?P<c>\d{{1,4}})"
    rf"(?:(?P<t>[T ]){_CLOCK}{_ZONE})?"
)
_NAMED = re.compile(
    rf"(?:(?P<d>\d{{1,2}})(?P<x>[- ])(?:{_MONTHS})[a-z]*(?P<y>[- ])"
    rf"|(?:{_MONTHS})[a-z]* (?P<d2>\d{{1,2}})(?P<c>,?) )(?P<year>\d{{4}}|\d\d)",
    re.IGNORECASE,
)
_MONTH = re.compile(r"(?:19|20)\d\d-(?:0[1-9]|1[0-2])")
_TIME = re.compile(r"[+-]?\d{1,4}:[0-5]\d(?::[0-5]\d(?:\.\d{1,9})?)?(?:\s?[APap][Mm])?")
_SPAN = r"^([+-]?)(\d{1,4}):([0-5]\d)(?::([0-5]\d(?:\.\d{1,9})?))?\s?([APap])?[Mm]?$"


@dataclass(frozen=True)
class Moment:
    """What a column of dates or times is, and its format: None is hours:minutes:seconds."""

    kind: MomentKind
    format: str | None

    @property
    def meaning(self) -> str:
        """What its numbers are."""
        return MEANING[self.kind]

    @property
    def shown(self) -> str:
        """Its format, as errors name it."""
        return repr(self.format or "hours:minutes:seconds")

    def numbers(self, texts: Any) -> Any:
        """Return a polars column of Float64 for one of texts; null where a text is none."""
        pl = import_extra("polars", "tables")
        texts = texts.str.strip_chars()
        if self.format is None:
            return _spans(texts)
        form = self.format.replace(".%f", "%.f")
        if "%z" in form:
            texts = texts.str.replace(r"\s?(?:Z|UTC)$", "+0000").str.replace(r" ([+-]\d)", "${1}")
            form = form.replace(" %z", "%z")
        to = {"date": pl.Date, "datetime": pl.Datetime("us"), "time": pl.Time}[self.kind]
        try:
            found = texts.str.strptime(to, form, strict=False).to_physical().cast(pl.Float64)
        except pl.exceptions.PolarsError as error:
            raise OptionError(
                f"dates= has the format {self.format!r}, which cannot be read: "
                f"{str(error).partition(chr(10))[0]} Write it as '%d.%m.%Y %H:%M:%S'."
            ) from None
        return found / {"date": 1, "datetime": 1_000_000, "time": 1_000_000_000}[self.kind]


def _spans(texts: Any) -> Any:
    """Return seconds for hours, minutes and seconds: of any number of hours, or AM and PM."""
    pl = import_extra("polars", "tables")
    sign, hours, minutes, seconds, half = (texts.str.extract(_SPAN, n) for n in range(1, 6))
    late = (half.str.to_lowercase() == "p").fill_null(value=False)
    hours = hours.cast(pl.Float64)
    hours = pl.select(
        pl.when(half.is_null()).then(hours).otherwise(hours % 12 + 12 * late.cast(pl.Float64))
    ).to_series()
    total = hours * 3600 + minutes.cast(pl.Float64) * 60 + seconds.cast(pl.Float64).fill_null(0)
    return total * (1 - 2 * (sign == "-").cast(pl.Float64))


def moment_of(fields: Sequence[str]) -> list[Moment]:
    """Return what dates or times texts are: two answers where day and month may be either way."""
    texts = [field.strip() for field in fields]
    if not texts:
        return []
    if all(_TIME.fullmatch(text) for text in texts):
        return [Moment("time", None)]
    if all(_MONTH.fullmatch(text) for text in texts):
        return [Moment("date", "%Y-%m")]
    for shape, pattern in ((_of_digits, _DIGITS), (_of_names, _NAMED)):
        found = [pattern.fullmatch(text) for text in texts]
        matches = [match for match in found if match is not None]
        if len(matches) == len(texts):
            return shape(matches)
    return []


def _of_digits(matches: list[re.Match[str]]) -> list[Moment]:
    rest = {_rest(match) for match in matches}
    years = {(len(match["a"]), len(match["c"]) > 2) for match in matches}
    if len(rest) > 1 or len({match["x"] for match in matches}) > 1:
        return []
    [behind] = rest
    mark = matches[0]["x"]
    kind: MomentKind = "datetime" if behind else "date"
    a, b = ([int(match[name]) for match in matches] for name in "ab")
    if all(first == 4 and not last for first, last in years):
        is_one = max(b) <= 12 and max(int(match["c"]) for match in matches) <= 31
        return [Moment(kind, f"%Y{mark}%m{mark}%d{behind}")] if is_one else []
    lengths = {len(match["c"]) for match in matches}
    if max(len(match["a"]) for match in matches) > 2 or lengths not in ({4}, {2}):
        return []
    year = "%Y" if lengths == {4} else "%y"
    orders = []
    if max(a) <= 31 and max(b) <= 12:
        orders.append(f"%d{mark}%m{mark}{year}{behind}")
    if max(a) <= 12 and max(b) <= 31 and mark != ".":  # with dots, the day comes first everywhere
        orders.append(f"%m{mark}%d{mark}{year}{behind}")
    return [Moment(kind, order) for order in orders]


def _rest(match: re.Match[str]) -> str:
    """Return the format of the time behind a date."""
    if match["t"] is None:
        return ""
    hour = "%I" if match["p"] else "%H"
    clock = f"{hour}:%M" + (":%S.%f" if match["s"] else "")
    space = " " if (match["p"] or "").startswith(" ") else ""
    half = f"{space}%p" if match["p"] else ""
    return f"{match['t']}{clock}{half}" + ("%z" if match["z"] else "")


def _of_names(matches: list[re.Match[str]]) -> list[Moment]:
    formats = set()
    for match in matches:
        year = "%Y" if len(match["year"]) == 4 else "%y"
        first = match["d"] is not None
        formats.add(f"%d{match['x']}%B{match['y']}{year}" if first else f"%B %d{match['c']} {year}")
    return [Moment("date", formats.pop())] if len(formats) == 1 else []


def given(formats: Mapping[str, str | None]) -> dict[str, Moment | None]:
    """Return what columns of dates are by the formats given for them; None is yet to be found.

    Raises:
        OptionError: a format that is none.
    """
    return {name: None if text is None else _given(name, text) for name, text in formats.items()}


def _given(name: str, text: str) -> Moment:
    if not isinstance(text, str) or "%" not in text:
        raise OptionError(
            f"dates= has {text!r} for {name!r}, which is no format. Write dates={{{name!r}: "
            f"'%d.%m.%Y'}}."
        )
    directives = set(re.findall(r"%-?([A-Za-z])", text))
    has_time = bool(directives & set("HIMSTRXpsf"))
    has_date = bool(directives & set("YymdbBjDFxesGVuaA"))
    kind: MomentKind = "date" if not has_time else "datetime" if has_date else "time"
    return Moment(kind, text)
