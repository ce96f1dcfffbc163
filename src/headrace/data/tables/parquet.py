"""Parquet files as a dataset of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from headrace.data.gatherer import Array
from headrace.data.progress import Progress
from headrace.data.tables.arrow import Missing, check_missing
from headrace.data.tables.cache import (
    Memory,
    Sink,
    converted,
    default_directory,
    describe,
    entry_of,
    opened,
)
from headrace.data.tables.columns import Column, Offsets, Pieces, RowDataset, Rows, StoredRows
from headrace.data.tables.csv import CacheDir, Path, cache_directory
from headrace.data.tables.row_groups import GroupRows, Groups, RowGroupSampler, parquet_files
from headrace.errors import OptionError


class ParquetDataset(RowDataset):
    """Rows of Parquet files, as dicts of column name to value.

    Numbers and truth values are NumPy scalars of the column's type, lists are arrays, texts are
    ``str``: the default collation makes tensors of the column's type, and lists of texts. Where
    all columns are numbers or lists of a fixed size, batches are gathered without Python per
    sample.

    A row group has to be decoded as a whole, so rows in any order are read from decoded columns:
    in memory up to 64 MiB, beyond that in files of a cache directory, which are written once and
    mapped into memory. With ``cache_dir=False`` nothing is written: row groups are decoded when
    their rows are asked for, and the last few stay in memory. Read those in order, or with
    :meth:`sampler`.

    Args:
        path: a file, several, or a directory, whose ``.parquet`` files are read in the order of
            their names.
        columns: names of the columns to read, in the order of a sample's keys; default all.
        missing: "error", or the number to put where a number is missing; a missing text or list
            is then an empty one.
        cache_dir: where decoded columns are kept. None is ``~/.cache/headrace/tables`` for more
            than 64 MiB and memory for less; False reads row groups as they are needed.
        groups_in_memory: how many row groups stay in memory with ``cache_dir=False``; as many are
            shuffled together by :meth:`sampler`.

    Raises:
        SourceError: a file that is no Parquet, files of different types, a directory without
            Parquet, a missing value. It names file, row and column.
        MissingColumnError: a column that is not there.
        ArrayTypeError: a column of dates, structs or the like, which makes no tensor.
        SourceChangedError: a file that changed while it was read.
    """

    def __init__(
        self,
        path: Path | Sequence[Path],
        columns: Sequence[str] | None = None,
        *,
        missing: Missing = "error",
        cache_dir: CacheDir = None,
        groups_in_memory: int = 1,
    ) -> None:
        self._paths = parquet_files(path)
        if not self._paths:
            raise OptionError("there are no files to read: the list of paths is empty.")
        if groups_in_memory < 1:
            raise OptionError(f"groups_in_memory= is at least 1, got {groups_in_memory}.")
        self._columns = [columns] if isinstance(columns, str) else columns and list(columns)
        self._missing = check_missing(missing)
        self._cache_dir = cache_dir
        self._keep = groups_in_memory
        self._key = describe(self._paths, {"columns": self._columns, "missing": repr(missing)})
        self._load()

    def _load(self) -> None:
        self._rows: Rows
        if self._cache_dir is not False:
            entry = entry_of(self._cache_dir or default_directory(), self._key)
            ready = opened(entry, self._key)
            if ready is not None:
                self._rows = _stored(*ready)  # without a look into the Parquet files
                return
        groups = Groups(self._key, self._columns, self._missing)
        if self._cache_dir is False:
            self._rows = GroupRows(groups, self._keep)
        elif cache_directory(self._cache_dir, groups.size_bytes()) is None:
            memory = Memory()
            extra = _decode(groups, memory)
            self._rows = _stored(memory.arrays(), extra)
        else:
            self._rows = _stored(*converted(entry, self._key, partial(_decode, groups)))

    def sampler(self, generator: torch.Generator | None = None) -> RowGroupSampler:
        """Return a shuffle that reads each row group once an epoch, for ``cache_dir=False``.

        The order of the row groups is shuffled, and then the rows of ``groups_in_memory`` groups
        at a time. Where columns are decoded already, ``shuffle=True`` mixes better and costs no
        more.

        Args:
            generator: where the order comes from; None is torch's global generator.
        """
        groups = Groups(self._key, self._columns, self._missing)
        return RowGroupSampler(groups.sizes, self._keep, generator)

    def _identity(self) -> str:
        return json.dumps(self._key, sort_keys=True)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what was asked for, not what was read."""
        return {k: v for k, v in self.__dict__.items() if k != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()  # of the same key: what was decoded, or the same files

    def __repr__(self) -> str:
        return f"ParquetDataset({len(self):,} rows of {len(self.column_names)} columns)"


def _decode(groups: Groups, sink: Sink) -> dict[str, Any]:
    """Write the columns of all row groups to ``sink``; return what they are."""
    totals = dict.fromkeys(groups.names, 0)
    widths: dict[str, set[int]] = {name: set() for name in groups.names}
    kinds: dict[str, str] = {}
    with Progress(f"decoding {groups.paths[0]}", groups.rows, "rows") as progress:
        for number in range(len(groups)):
            for name, column in groups.read(number).items():
                kinds[name] = _append(sink, name, column, totals, widths[name])
            progress.advance(int(groups.sizes[number]))
    groups.check_unchanged()
    columns = [
        [name, kinds.get(name, "number"), widths[name].pop() if len(widths[name]) == 1 else None]
        for name in groups.names
    ]
    return {"columns": columns, "rows": groups.rows}


def _append(sink: Sink, name: str, column: Column, totals: dict[str, int], widths: set[int]) -> str:
    """Add a row group's column; ``widths`` collects the lengths of its lists, two at most."""
    if not isinstance(column, Pieces):
        sink.append(name, column)
        return "number"
    offsets: Offsets = column.offsets - column.offsets[0] + totals[name]
    if not totals[name] and not sink.has(_offsets(name)):
        sink.append(_offsets(name), offsets[:1])
    sink.append(_offsets(name), offsets[1:])
    sink.append(name, column.values[column.offsets[0] : column.offsets[-1]])
    totals[name] = int(offsets[-1])
    if column.kind == "array" and len(widths) < 2:
        widths.update(np.unique(np.diff(offsets))[:2].tolist())
    return column.kind


def _offsets(name: str) -> str:
    return f"offsets of {name}"


def _stored(arrays: Mapping[str, Array], extra: Mapping[str, Any]) -> StoredRows:
    rows = int(extra["rows"])
    table: dict[str, Column] = {}
    for name, kind, width in extra["columns"]:
        values = arrays.get(name, np.empty(0))
        if kind == "number" or not rows:
            table[name] = values
        elif kind == "array" and width is not None:
            table[name] = values.reshape(rows, width)
        else:
            table[name] = Pieces(kind, arrays[_offsets(name)], values)
    return StoredRows(table, rows)
