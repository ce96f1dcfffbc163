"""How a CSV file is written: its separator, encoding and comments, and the notation of numbers."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from headrace.errors import OptionError, OptionTypeError

NULL_VALUES = (
    *("", "NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "NaN", "nan", "-NaN", "-nan"),
    *("null", "NULL", "Null", "None"),
)

# One thousands separator stands for those that look like it: no-break spaces, the typographic
# apostrophe.
_LIKE = {" ": " \u00a0\u202f\u2009", "'": "'\u2019"}


@dataclass(frozen=True)
class Notation:
    """How numbers are written, as Python and polars (Rust) both read it by regular expressions."""

    decimal: str = "."
    thousands: str | None = None
    units: tuple[str, ...] = ()

    @cached_property
    def is_plain(self) -> bool:
        """Whether numbers are as programs write them."""
        return (self.decimal, self.thousands, self.units) == (".", None, ())

    @cached_property
    def between(self) -> str:
        """What stands between groups of digits."""
        return f"[{re.escape(_LIKE.get(self.thousands or '', self.thousands or ''))}]"

    @cached_property
    def number(self) -> str:
        """A whole field, without spaces around it and without units."""
        point = re.escape(self.decimal)
        whole = "[0-9]+"
        if self.thousands is not None:  # in groups of three, of two in India
            group = self.between
            whole = f"(?:[0-9]{{1,3}}(?:{group}[0-9]{{2,3}})*{group}[0-9]{{3}}|[0-9]+)"
        digits = f"(?:{whole}(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?"
        return f"^[+-]?(?:{digits}|(?i:inf|infinity|nan))$"

    @cached_property
    def before(self) -> str:
        """A unit before the number, and the sign before that."""
        return rf"^([+-]?)\s*(?:{self._any_unit})\s*"

    @cached_property
    def behind(self) -> str:
        """A unit behind the number."""
        return rf"\s*(?:{self._any_unit})$"

    @property
    def _any_unit(self) -> str:
        return "|".join(re.escape(unit) for unit in sorted(self.units, key=len, reverse=True))

    def read(self, text: str) -> float | None:
        """Return the number that a field says, None if it says none."""
        if self.is_plain:
            return _as_number(text)
        text = text.strip()
        if self.units:
            text = re.sub(self.behind, "", re.sub(self.before, r"\1", text, count=1), count=1)
        if re.match(self.number, text) is None:
            return None
        if self.thousands is not None:
            text = re.sub(self.between, "", text)
        return _as_number(text.replace(self.decimal, "."))


def _as_number(text: str) -> float | None:
    """Return the number that a field says, as polars reads it."""
    if "_" in text or not text.isascii():  # Python admits 1_000
        return None
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class Form:
    """How a CSV file is written. ``separator`` None is yet to be found, ``has_header`` None is yes,
    unless the first line looks like a row."""

    separator: str | None = ","
    has_header: bool | None = None
    null_values: tuple[str, ...] = NULL_VALUES
    encoding: str = "utf-8"
    comment: str | None = None
    skipinitialspace: bool = False
    notation: Notation = field(default_factory=Notation)

    @property
    def is_named(self) -> bool:
        """Whether the first line has the names of the columns."""
        return self.has_header is not False

    @property
    def mark(self) -> str:
        """The separator, once it is known."""
        return self.separator or ","


def checked_form(
    *,
    separator: str | None,
    has_header: bool | None,
    null_values: Sequence[str],
    encoding: str,
    comment: str | None,
    skipinitialspace: bool,
    decimal: str,
    thousands: str | None,
    units: str | Sequence[str],
) -> Form:
    """Return how a file is written, as it was said.

    Raises:
        OptionError: something that cannot be.
    """
    _character("separator", separator, ";", optional=True)
    _character("decimal", decimal, ",", optional=False)
    _character("thousands", thousands, ",", optional=True)
    if thousands == decimal:
        raise OptionError(
            f"decimal= and thousands= are both {decimal!r}. Write decimal=',', thousands='.'."
        )
    if comment is not None and (not isinstance(comment, str) or not comment or "\n" in comment):
        raise OptionError(f"comment= is how a comment begins, got {comment!r}. Write comment='#'.")
    if isinstance(null_values, str):
        raise OptionTypeError(
            f"null_values= is a list of texts, got {null_values!r}. Write ['', {null_values!r}]."
        )
    several = (units,) if isinstance(units, str) else tuple(units)
    if not all(isinstance(u, str) and u.strip() and not re.search(r"\d", u) for u in several):
        raise OptionError(
            f"units= are texts before or behind numbers, without digits, got {units!r}. Write "
            f"units=['$', '%']."
        )
    notation = Notation(decimal, thousands, tuple(u.strip() for u in several))
    codec = _codec(encoding)
    nulls = tuple(null_values)
    return Form(separator, has_header, nulls, codec, comment, bool(skipinitialspace), notation)


def _character(name: str, value: str | None, example: str, *, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, str) or len(value) != 1 or value in '"\r\n' or value.isalnum():
        raise OptionError(f"{name}= is one character, got {value!r}. Write {name}={example!r}.")
    if name == "separator" and not value.isascii():
        raise OptionError(f"{name}= is an ASCII character, got {value!r}. Write {name}=';'.")


def _codec(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        "a".encode(name)
    except (LookupError, TypeError):
        raise OptionError(
            f"encoding= is one that Python knows, got {encoding!r}. Write encoding='cp1252' for "
            f"files of Windows in western languages."
        ) from None
    return "utf-8" if name in ("utf-8-sig", "ascii") else name
