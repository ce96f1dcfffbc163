"""Arrow's numbers, dates, times and decimals as numbers of torch's types."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

from headrace.data.tables.kinds import is_time
from headrace.errors import SourceError
from headrace.extras import import_extra

_DIGITS = 15  # decimal digits that every float64 keeps
_REMEDY = (
    "Write the column as text or whole numbers before, or leave it out with columns=. In pyarrow: "
    'column.cast("string").'
)

Fault = Callable[[int, str], SourceError]


def numbers_of(array: Any, fault: Fault, remedy: str = _REMEDY) -> Any:
    """Return an Arrow array of numbers for one that has a plain meaning as such; nulls stay.

    A timestamp, a time and a duration are the int64 of their unit, a date the int64 of its days
    since 1970, a decimal is a float64.

    Args:
        array: of a plain type.
        fault: makes the error for a value, of its place and what is wrong with it.
        remedy: what to do about a decimal that has too many digits.

    Raises:
        SourceError: a decimal with more digits than a float64 holds.
    """
    pa = import_extra("pyarrow", "tables")
    types, kind = pa.types, array.type
    if types.is_null(kind):
        return array.cast(pa.float64())
    if types.is_decimal(kind):
        return _decimals(array, fault, remedy)
    if not is_time(kind):
        return array
    if types.is_date64(kind):
        array = array.cast(pa.date32())
    if array.type.bit_width == 32:
        array = array.cast(pa.int32())
    return array.cast(pa.int64())


def _decimals(array: Any, fault: Fault, remedy: str) -> Any:
    pa = import_extra("pyarrow", "tables")
    # By way of text, which is rounded once: Arrow's own cast may be off by the last bit.
    texts = array.cast(pa.string())
    if array.type.precision <= _DIGITS:
        return texts.cast(pa.float64())
    return texts_as_numbers(texts, fault, remedy)


def texts_as_numbers(texts: Any, fault: Fault, remedy: str = _REMEDY) -> Any:
    """Return an array of decimals that are written out as float64; nulls stay.

    ``remedy`` is what to write where one is no float64.

    Raises:
        SourceError: one has more digits than a float64 holds.
    """
    pa = import_extra("pyarrow", "tables")
    numbers = texts.cast(pa.float64())
    for place in _long(texts):
        text, number = texts[place].as_py(), numbers[place].as_py()
        if Decimal(repr(number)) != Decimal(text):
            raise fault(
                place,
                f"the decimal {text} has more digits than a float64. {remedy}",
            )
    return numbers


def _long(texts: Any) -> list[int]:
    """Return the places of the numbers with more digits than every float64 keeps."""
    compute = import_extra("pyarrow.compute", "tables")
    digits = compute.replace_substring_regex(texts, r"[eE].*$", "")
    digits = compute.replace_substring_regex(digits, r"[-+.]", "")
    digits = compute.utf8_trim(digits, "0")
    long = compute.fill_null(compute.greater(compute.utf8_length(digits), _DIGITS), False)
    found: list[int] = np.flatnonzero(long.to_numpy(zero_copy_only=False)).tolist()
    return found
