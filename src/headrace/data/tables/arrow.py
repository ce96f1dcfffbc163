"""From Arrow's columns to arrays, without copying where the buffers allow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from headrace.data.gatherer import Array
from headrace.data.images.decoder import ImageDecoder, Wording
from headrace.data.tables.kinds import (
    becomes_number,
    is_bytes,
    is_image_struct,
    is_list,
    is_text,
    leaf_of,
    plain_array,
    plain_kind,
    tensor_order,
)
from headrace.data.tables.nested import Column, Images, Lists, Maps, Structs
from headrace.data.tables.numbers import numbers_of
from headrace.data.tables.pieces import Pieces
from headrace.errors import ArrayTypeError, MissingColumnError, OptionError, SourceError
from headrace.extras import import_extra

Missing: TypeAlias = float | Literal["error"]
Owner: TypeAlias = Callable[[int], int]

_WORDING = Wording(
    "images=ImageDecoder({})",
    'Write images=False to have its bytes, or DataLoader(..., on_error="skip") to leave it out.',
)


@dataclass(frozen=True)
class Place:
    """Which column is read, and what its missing values are replaced by.

    ``where`` is the file or table, for errors; ``first_row`` the number of the first row there.
    ``owner`` says which row a value inside lists belongs to. ``images`` are the names of the
    columns, with the way inside, whose structs are images, and ``decoder`` reads them.
    """

    where: str
    name: str
    missing: Missing
    first_row: int = 0
    owner: Owner | None = None
    images: frozenset[str] = frozenset()
    decoder: ImageDecoder | None = None

    def row(self, number: int) -> int:
        """Return the row that a value belongs to."""
        return self.first_row + (number if self.owner is None else self.owner(number))

    def inside(self, name: str, owner: Owner | None = None) -> Place:
        """Return the place of the values inside, which belong to rows of this as ``owner`` says."""
        if owner is None:
            return replace(self, name=self.name + name)
        above = self.owner
        found = owner if above is None else lambda number: above(owner(number))
        return replace(self, name=self.name + name, owner=found)

    def fault_at(self, row: int, what: str) -> SourceError:
        """Return an error for a value."""
        return SourceError(f"{self.where}, row {self.row(row):,}, column {self.name!r}: {what}")

    def missing_at(self, row: int, what: str = "a value") -> SourceError:
        """Return the error for a missing value."""
        return self.fault_at(
            row,
            f"{what} is missing. Write missing=0 (or another number; float('nan') where all that "
            f"are missing are floats) to put one there, or take out such rows before.",
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


def checked_images(images: Any) -> ImageDecoder | None:
    """Return the decoder that ``images=`` says, None for none.

    Raises:
        OptionError: it is something else.
    """
    if images is False:
        return None
    if images is not None and not isinstance(images, ImageDecoder):
        raise OptionError(
            f"images= is False or an ImageDecoder, got {images!r}. Write "
            f"images=ImageDecoder(size=224)."
        )
    return replace(images or ImageDecoder(), wording=_WORDING)


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
    """Return an Arrow column as an array, or as what its values are made of.

    Args:
        column: a ``pyarrow.ChunkedArray``.
        place: where it is from. Its ``missing`` stands for a null in columns and lists of numbers;
            a missing text, byte string or list is an empty one.

    Raises:
        SourceError: a null, with ``missing="error"``, or a value that would not be what it is.
        ArrayTypeError: a type that has no plain meaning.
    """
    return _column(_one_chunk(column), place)


def _column(array: Any, place: Place) -> Column:  # noqa: PLR0911 - one for each kind of column
    types = import_extra("pyarrow", "tables").types
    if types.is_map(array.type):
        return _maps(array, place)
    if tensor_order(array.type) is not None:
        return _tensors(array, place)
    array = plain_array(array)
    kind = array.type
    if becomes_number(kind) or types.is_null(kind):
        return _numbers(_without_nulls(numbers_of(array, place.fault_at), place))
    if is_text(kind) or is_bytes(kind):
        row: Literal["text", "bytes"] = "text" if is_text(kind) else "bytes"
        if array.null_count:
            if place.missing == "error":
                raise _null(array, place)
            array = array.fill_null("" if row == "text" else b"")
        return _bytes(array, row)
    if types.is_fixed_size_list(kind) and leaf_of(plain_kind(kind)) is not None:
        return _rows_of_one_length(array, place)
    if is_list(kind) or types.is_fixed_size_list(kind):
        return _lists(array, place)
    if types.is_struct(kind):
        return _structs(array, place)
    raise ArrayTypeError(
        f"{place.where}, column {place.name!r}: {kind} makes no tensor. Leave it out with "
        f"columns=, or turn it into numbers or text before."
    )


def _tensors(array: Any, place: Place) -> Array:
    flat: Any = _column(array.storage, place)
    order = tensor_order(array.type) or ()
    stored: Array = flat.reshape(len(array), *array.type.shape)
    return stored.transpose(0, *(dimension + 1 for dimension in order))


def _rows_of_one_length(array: Any, place: Place) -> Array:
    if array.null_count and place.missing == "error":
        raise _null(array, place)
    if array.null_count:
        raise place.fault_at(
            int(np.argmax(array.is_null().to_numpy(zero_copy_only=False))),
            "a list of a fixed size is missing, which no number can stand for. Take out such rows "
            "before, or write the column as lists of any length.",
        )
    length = array.type.list_size
    inside = place.inside("", lambda number: number // length)
    values: Any = _column(array.flatten(), inside)
    rows: Array = values.reshape(len(array), length, *values.shape[1:])
    return rows


def _structs(array: Any, place: Place) -> Column:
    pa = import_extra("pyarrow", "tables")
    if place.name in place.images and is_image_struct(array.type):
        return _images(array, place)
    names = [field.name for field in array.type]
    if len(set(names)) < len(names):
        raise SourceError(
            f"{place.where}, column {place.name!r}: two of its fields have one name: "
            f"{', '.join(map(repr, names))}. Give each its own."
        )
    if not names and array.null_count and place.missing == "error":
        raise _null(array, place)
    # A field of a struct that is missing is missing.
    values = dict(zip(names, array.flatten(), strict=True))
    if is_image_struct(array.type):  # of bytes from elsewhere no path is known: nothing is amiss
        values["path"] = plain_array(values["path"]).cast(pa.large_string()).fill_null("")
    fields = {name: _column(v, place.inside(f".{name}")) for name, v in values.items()}
    return Structs(fields, len(array))


def _maps(array: Any, place: Place) -> Maps:
    kind = plain_kind(array.type).key_type
    if not (becomes_number(kind) or is_text(kind) or is_bytes(kind)):
        raise ArrayTypeError(
            f"{place.where}, column {place.name!r}: keys of type {kind} make no dict. Leave it out "
            f"with columns=, or turn it into a list of structs before."
        )
    maps = Maps(cast(Lists, _column(plain_array(array), place)))
    twice = maps.first_with_a_key_twice()
    if twice is not None:
        raise place.fault_at(
            twice,
            "a key comes twice, of which a dict would lose one. Leave it out with columns=, or "
            "turn it into a list of structs before.",
        )
    return maps


def _images(array: Any, place: Place) -> Images:
    fields = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
    encoded = plain_array(fields["bytes"])
    if encoded.null_count:
        at = int(np.argmax(encoded.is_null().to_numpy(zero_copy_only=False)))
        path = fields["path"][at].as_py()
        if path is None:
            raise place.fault_at(
                at,
                "the image is missing. Take out such rows before, or write images=False, missing=0 "
                "to have dicts, with bytes that are empty there.",
            )
        raise place.fault_at(
            at,
            f"the image is not in it, only its path {path!r}. Write images=False, missing=0 and "
            f"open the paths in a function: dataset.map(fn).",
        )
    assert place.decoder is not None
    pieces = cast(Pieces, _column(encoded, replace(place, missing="error")))
    first = place.first_row if place.owner is None else 0
    return Images(pieces, f"{place.where}, column {place.name!r}", place.decoder, first)


def _without_nulls(array: Any, place: Place) -> Any:
    if not array.null_count:
        return array
    if place.missing == "error":
        raise _null(array, place)
    pa = import_extra("pyarrow", "tables")
    try:
        return array.fill_null(pa.scalar(place.missing).cast(array.type))
    except pa.ArrowInvalid:
        raise SourceError(
            f"{place.where}, column {place.name!r}: missing={place.missing!r} is no value of its "
            f"type {array.type}. Write a whole number in its range, as missing=-1."
        ) from None


def _null(array: Any, place: Place) -> SourceError:
    what = "a value" if place.owner is None else "a value of its list"
    return place.missing_at(int(np.argmax(array.is_null().to_numpy(zero_copy_only=False))), what)


def _one_chunk(column: Any) -> Any:
    pa = import_extra("pyarrow", "tables")
    if column.num_chunks == 1:
        return column.chunk(0)
    if not column.num_chunks:
        return pa.array([], column.type)
    if pa.types.is_dictionary(column.type):  # each chunk may have a dictionary of its own
        return pa.concat_arrays([plain_array(chunk) for chunk in column.chunks])
    return pa.concat_arrays(column.chunks)


def _numbers(array: Any) -> Array:
    numbers: Array = array.to_numpy(zero_copy_only=False)
    return numbers


def _bytes(array: Any, kind: Literal["text", "bytes"]) -> Pieces:
    _, offsets, data = array.buffers()
    if len(array) == 0:
        return Pieces(kind, np.zeros(1, np.int64), np.empty(0, np.uint8))
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    values = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return Pieces(kind, ends, values)


def _lists(array: Any, place: Place) -> Column:
    """Return lists of numbers as pieces, maps as maps, all others as lists."""
    if array.null_count and place.missing == "error":
        raise _null(array, place)
    compute = import_extra("pyarrow.compute", "tables")
    lengths = compute.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths, dtype=np.int64)
    offsets = np.concatenate((np.zeros(1, np.int64), ends))
    inside = array.flatten()  # leaves out what a null stands for
    one_number = becomes_number(plain_kind(inside.type))
    owner: Owner = lambda number: int(np.searchsorted(ends, number, side="right"))  # noqa: E731
    values = _column(inside, place.inside("" if one_number else "[]", owner))
    if one_number:
        return Pieces("array", offsets, cast(Array, values))
    return Lists(offsets, values)
