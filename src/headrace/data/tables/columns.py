"""Rows of a table: those of columns in memory, and datasets of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from headrace.data.columns import columns
from headrace.data.compose import Source
from headrace.data.gatherer import Gatherer, IndexArray, in_range
from headrace.data.mapped import MappedFiles
from headrace.data.tables.nested import Column, arrays_of, take
from headrace.errors import SampleIndexError


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
        self._files = MappedFiles(array for column in table.values() for array in arrays_of(column))

    def __len__(self) -> int:
        return self._length

    def take(self, indices: IndexArray) -> Sequence[Iterable[Any]]:
        """Return for each column its values at ``indices``."""
        self._files.check()
        return [take(column, indices) for column in self._table.values()]

    def gatherer(self) -> Gatherer | None:
        """Return the gatherer of the columns if all are arrays."""
        arrays = {n: c for n, c in self._table.items() if isinstance(c, np.ndarray)}
        return columns(arrays) if self._length and len(arrays) == len(self._table) else None


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
