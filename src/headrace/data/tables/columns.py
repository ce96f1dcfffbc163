"""Columns of a table: arrays, and texts and lists of any length as values and offsets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.data.columns import columns
from headrace.data.compose import Source
from headrace.data.gatherer import Array, Gatherer, IndexArray, in_range
from headrace.data.mapped import MappedFiles
from headrace.errors import SampleIndexError

Offsets: TypeAlias = npt.NDArray[np.int64]


class Pieces:
    """A column of rows of any length: texts, byte strings, or arrays.

    Args:
        kind: what a row is.
        offsets: int64 of shape ``(rows + 1,)``: row i is ``values[offsets[i]:offsets[i + 1]]``.
        values: the rows, one behind the other; uint8 for texts (UTF-8) and byte strings.
    """

    def __init__(
        self, kind: Literal["text", "bytes", "array"], offsets: Offsets, values: Array
    ) -> None:
        self.kind = kind
        self.offsets = offsets
        self.values = values
        self._make: Any = {"text": _text, "bytes": Array.tobytes, "array": np.array}[kind]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, indices: IndexArray) -> list[Any]:
        """Return the rows at ``indices``, each in ``[0, len)``."""
        starts, ends = self.offsets[indices].tolist(), self.offsets[indices + 1].tolist()
        make, values = self._make, self.values.view(np.ndarray)
        return [make(values[start:end]) for start, end in zip(starts, ends, strict=True)]


def _text(row: Array) -> str:
    return row.tobytes().decode()


Column: TypeAlias = Array | Pieces


class Rows(Protocol):
    """Where the rows of a table come from."""

    @property
    def names(self) -> Sequence[str]:
        """The names of the columns."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def take(self, indices: IndexArray) -> Sequence[Iterable[Any]]:
        """Return for each column its values at ``indices``, in order."""

    def gatherer(self) -> Gatherer | None:
        """Return what gathers whole batches, None where a column is no array."""


class StoredRows:
    """Rows of columns that are in memory, or mapped into it."""

    def __init__(self, table: Mapping[str, Column], length: int) -> None:
        self.names = tuple(table)
        self._table = table
        self._length = length
        self._files = MappedFiles(array for column in table.values() for array in _arrays(column))

    def __len__(self) -> int:
        return self._length

    def take(self, indices: IndexArray) -> Sequence[Iterable[Any]]:
        """Return for each column its values at ``indices``."""
        self._files.check()
        return [take(column, indices) for column in self._table.values()]

    def gatherer(self) -> Gatherer | None:
        """Return the gatherer of the columns if all are arrays."""
        if not self._length or any(isinstance(c, Pieces) for c in self._table.values()):
            return None
        return columns(self._table)


def _arrays(column: Column) -> tuple[Array, ...]:
    return (column.offsets, column.values) if isinstance(column, Pieces) else (column,)


def take(column: Column, indices: IndexArray) -> Iterable[Any]:
    """Return a column's values at ``indices``: NumPy scalars, arrays, texts or byte strings."""
    if isinstance(column, Pieces):
        return column.take(indices)
    rows: Array = column.view(np.ndarray)[indices]
    return rows


class RowDataset(Source):
    """A dataset whose samples are the rows of a table, as dicts of column name to value."""

    _rows: Rows

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of the columns, in the order of a sample's keys."""
        return tuple(self._rows.names)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one row."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows at ``indices``, with one look-up for each column."""
        found = places(indices, len(self), type(self).__name__)
        names = self._rows.names
        table = self._rows.take(found)
        return [dict(zip(names, row, strict=True)) for row in zip(*table, strict=True)]

    def __gather__(self) -> Gatherer | None:
        """Join the gather protocol where every column is an array."""
        return self._rows.gatherer()


def places(indices: Any, length: int, what: str) -> IndexArray:
    """Return indices as an array in ``[0, length)``.

    Raises:
        SampleIndexError: one is outside ``[-length, length)``.
        TypeError: one is no integer.
    """
    if not length and len(indices):
        raise SampleIndexError(f"index {indices[0]} is out of range: {what} has no rows.")
    found = in_range(indices, length, what)
    if found is None:
        raise TypeError(
            f"{what} is indexed by integers, got {indices!r:.80}. Write dataset[0], or "
            f"Subset(dataset, indices) for some of its rows."
        )
    return found
