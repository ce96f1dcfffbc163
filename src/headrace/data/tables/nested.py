"""Columns of structs, lists, maps and images: built of those of numbers, texts and byte strings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from headrace.data.gatherer import Array, IndexArray
from headrace.data.images.decoder import ImageDecoder
from headrace.data.tables.pieces import Offsets, Pieces

Column: TypeAlias = "Array | Pieces | Lists | Maps | Structs | Images"


class Lists:
    """A column of lists of any length of what is not a number.

    Args:
        offsets: int64 of shape ``(rows + 1,)``, the first one 0.
        values: the items of all lists, a column themselves.
    """

    def __init__(self, offsets: Offsets, values: Column) -> None:
        self.offsets = offsets
        self.values = values

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, indices: IndexArray) -> list[list[Any]]:
        """Return the lists at ``indices``."""
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        inside = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
        items = list(take(self.values, inside))
        bounds = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
        return [items[start:end] for start, end in bounds]


class Maps:
    """A column of maps: lists of structs of a key and a value, given as dicts."""

    def __init__(self, entries: Lists) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def take(self, indices: IndexArray) -> list[dict[Any, Any]]:
        """Return the maps at ``indices``."""
        taken = self.entries.take(indices)
        return [{_key(entry["key"]): entry["value"] for entry in entries} for entries in taken]

    def first_with_a_key_twice(self) -> int | None:
        """Return the first map with a key that comes twice, which a dict would lose."""
        everything = np.arange(len(self), dtype=np.intp)
        sizes = np.diff(self.entries.offsets).tolist()
        for place, (found, size) in enumerate(zip(self.take(everything), sizes, strict=True)):
            if len(found) != size:
                return place
        return None


def _key(key: Any) -> Any:
    return key.item() if isinstance(key, np.generic) else key


class Structs:
    """A column of dicts, which have the same keys in all rows."""

    def __init__(self, fields: Mapping[str, Column], length: int) -> None:
        self.fields = fields
        self._length = length

    def __len__(self) -> int:
        return self._length

    def take(self, indices: IndexArray) -> list[dict[str, Any]]:
        """Return the dicts at ``indices``."""
        if not self.fields:
            return [{} for _ in indices]
        columns = [take(column, indices) for column in self.fields.values()]
        return [dict(zip(self.fields, row, strict=True)) for row in zip(*columns, strict=True)]


class Images:
    """A column of images: encoded in memory, decoded when they are asked for."""

    def __init__(self, encoded: Pieces, name: str, decoder: ImageDecoder, first: int = 0) -> None:
        self.encoded = encoded
        self.name = name  # with the file, for errors; ``first`` is the number of the first image
        self._decoder = decoder
        self._first = first

    def __len__(self) -> int:
        return len(self.encoded)

    def take(self, indices: IndexArray) -> list[Any]:
        """Return the images at ``indices``."""
        places = indices.tolist()
        return [
            self._decoder(data, f"{self.name}, image {self._first + place:,}")
            for place, data in zip(places, self.encoded.take(indices), strict=True)
        ]


def take(column: Column, indices: IndexArray) -> Any:
    """Return a column's values at ``indices``: NumPy scalars, arrays, texts, lists, dicts."""
    if isinstance(column, np.ndarray):
        return column.view(np.ndarray)[indices]
    return column.take(indices)


def arrays_of(column: Column) -> list[Array]:
    """Return the arrays that a column is made of."""
    found: list[Array] = []
    map_arrays(column, lambda array: found.append(array) or array)  # type: ignore[func-returns-value]
    return found


def map_arrays(column: Column, function: Callable[[Array], Array]) -> Column:
    """Return a column with ``function`` applied to each array that it is made of."""
    if isinstance(column, Pieces):
        return Pieces(column.kind, function(column.offsets), function(column.values))
    if isinstance(column, Lists):
        return Lists(function(column.offsets), map_arrays(column.values, function))
    if isinstance(column, Maps):
        entries = column.entries
        return Maps(Lists(function(entries.offsets), map_arrays(entries.values, function)))
    if isinstance(column, Structs):
        fields = {name: map_arrays(c, function) for name, c in column.fields.items()}
        return Structs(fields, len(column))
    if isinstance(column, Images):
        encoded = column.encoded
        pieces = Pieces(encoded.kind, function(encoded.offsets), function(encoded.values))
        return Images(pieces, column.name, column._decoder, column._first)
    return function(column)
