"""From Arrow's columns to arrays, without copying where the buffers allow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from headrace.data.gatherer import Array
from headrace.data.tables.columns import Column, Pieces
from headrace.errors import ArrayTypeError, MissingColumnError, OptionError, SourceError
from headrace.extras import import_extra

Missing: TypeAlias = float | Literal["error"]


@dataclass(frozen=True)
class Place:
    """Which column is read, and what its missing values are replaced by.

    ``where`` is the file or table, for errors; ``first_row`` the number of the first row there.
    """

    where: str
    name: str
    missing: Missing
    first_row: int = 0

    def missing_at(self, row: int, what: str = "a value") -> SourceError:
        """Return the error for a missing value."""
        return SourceError(
            f"{self.where}, row {self.first_row + row:,}, column {self.name!r}: {what} is missing. "
            f"Write missing=0 (or another number; float('nan') where all that are missing are "
            f"floats) to put one there, or take out such rows before."
        )


def check_missing(missing: Any) -> Missing:
    """Return ``missing=`` if it is "error" or a number.

    Raises:
        OptionError: it is something else.
    """
    number = isinstance(missing, (int, float)) and not isinstance(missing, bool)
    if missing != "error" and not number:
        raise OptionError(
            f'missing= is "error" or the number to put where a value is missing, got {missing!r}. '
            f"Write missing=0."
        )
    checked: Missing = missing
    return checked


def select(names: Sequence[str], wanted: Sequence[str] | str | None, where: str) -> tuple[str, ...]:
    """Return the columns wanted of a table that has ``names``; None is all.

    Raises:
        MissingColumnError: one is not there.
        SourceError: two columns have one name, or none is wanted.
    """
    picked = tuple(names if wanted is None else [wanted] if isinstance(wanted, str) else wanted)
    check_names(names, picked, where)
    twice = sorted({name for name in picked if picked.count(name) > 1})
    if twice:
        raise SourceError(f"{where}: two columns are called {twice[0]!r}. Give each its own name.")
    if not picked:
        raise SourceError(f"{where} has no columns to read. Write columns= with their names.")
    return picked


def check_names(names: Sequence[str], wanted: Sequence[str], where: str) -> None:
    """Check that a table has the columns wanted.

    Raises:
        MissingColumnError: one is not there; the text names those that are.
    """
    for name in wanted:
        if name not in names:
            there = ", ".join(map(repr, names))
            raise MissingColumnError(f"{where} has no column {name!r}. It has: {there}.")


def column_of(column: Any, place: Place) -> Column:
    """Return an Arrow column as an array or as pieces.

    Args:
        column: a ``pyarrow.ChunkedArray``.
        place: where it is from. Its ``missing`` stands for a null in columns and lists of numbers;
            a missing text, byte string or list is an empty one.

    Raises:
        SourceError: a null, with ``missing="error"``.
        ArrayTypeError: a type that makes no tensor and no text.
    """
    pa = import_extra("pyarrow", "tables")
    types = pa.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if types.is_null(kind):
        column = column.cast(pa.float64())
        kind = column.type
    if types.is_boolean(kind) or is_number(kind):
        return _numbers(_without_nulls(column, place))
    array = _one_chunk(column)
    if types.is_fixed_size_list(kind) and is_number(kind.value_type):
        if array.null_count:  # a list of unknown values: no number can stand for it
            raise _null(array, place)
        values = _without_nulls(pa.chunked_array([array.flatten()]), place)
        return _numbers(values).reshape(len(array), kind.list_size)
    for is_kind, large, row in (
        (types.is_string, pa.large_string(), "text"),
        (types.is_large_string, pa.large_string(), "text"),
        (types.is_string_view, pa.large_string(), "text"),
        (types.is_binary, pa.large_binary(), "bytes"),
        (types.is_large_binary, pa.large_binary(), "bytes"),
    ):
        if is_kind(kind):
            if array.null_count and place.missing == "error":
                raise _null(array, place)
            return _bytes(array.fill_null("" if row == "text" else b"").cast(large), row)
    if (types.is_list(kind) or types.is_large_list(kind)) and is_number(kind.value_type):
        return _lists(array, place)
    raise ArrayTypeError(
        f"{place.where}, column {place.name!r}: {kind} makes no tensor. Leave it out with "
        f"columns=, or turn it into numbers or text before."
    )


def is_number(kind: Any) -> bool:
    """Say whether an Arrow type is one of torch's numbers."""
    types = import_extra("pyarrow", "tables").types
    return bool(types.is_integer(kind) or types.is_floating(kind))


def _without_nulls(column: Any, place: Place) -> Any:
    if not column.null_count:
        return column
    if place.missing == "error":
        raise _null(column, place)
    pa = import_extra("pyarrow", "tables")
    try:
        return column.fill_null(pa.scalar(place.missing).cast(column.type))
    except pa.ArrowInvalid:
        raise SourceError(
            f"{place.where}, column {place.name!r}: missing={place.missing!r} is no value of its "
            f"type {column.type}. Write a whole number in its range, as missing=-1."
        ) from None


def _null(column: Any, place: Place) -> SourceError:
    return place.missing_at(int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))))


def _one_chunk(column: Any) -> Any:
    pa = import_extra("pyarrow", "tables")
    if column.num_chunks == 1:
        return column.chunk(0)
    if not column.num_chunks:
        return pa.array([], column.type)
    return pa.concat_arrays(column.chunks)


def _numbers(column: Any) -> Array:
    numbers: Array = _one_chunk(column).to_numpy(zero_copy_only=False)
    return numbers


def _bytes(array: Any, kind: Any) -> Pieces:
    _, offsets, data = array.buffers()
    if len(array) == 0:
        return Pieces(kind, np.zeros(1, np.int64), np.empty(0, np.uint8))
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    values = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return Pieces(kind, ends, values)


def _lists(array: Any, place: Place) -> Pieces:
    pa = import_extra("pyarrow", "tables")
    if array.null_count and place.missing == "error":
        raise _null(array, place)
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    values = pa.chunked_array([array.flatten()])  # leaves out what a null stands for
    ends = np.cumsum(lengths, dtype=np.int64)
    if values.null_count and place.missing == "error":
        at = int(np.argmax(values.is_null().to_numpy()))
        row = int(np.searchsorted(ends, at, side="right"))
        raise place.missing_at(row, "a value of its list")
    offsets = np.concatenate((np.zeros(1, np.int64), ends))
    return Pieces("array", offsets, _numbers(_without_nulls(values, place)))
