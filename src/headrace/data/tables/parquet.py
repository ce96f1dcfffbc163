"""Parquet files as a dataset of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch

from headrace.data.files import PathLike as Path
from headrace.data.gatherer import Array
from headrace.data.images.decoder import ImageDecoder
from headrace.data.progress import Progress
from headrace.data.stores.remote import Options, Stores
from headrace.data.tables.arrow import Missing, check_missing, checked_images
from headrace.data.tables.cache import (
    CacheDir,
    Memory,
    Sink,
    cache_directory,
    converted,
    default_directory,
    describe,
    entry_of,
    opened,
)
from headrace.data.tables.columns import RowDataset, Rows, StoredRows
from headrace.data.tables.kinds import units_of
from headrace.data.tables.partitions import parquet_files
from headrace.data.tables.remote import Remote
from headrace.data.tables.row_groups import (
    GroupRows,
    Groups,
    RowGroupSampler,
    open_parquet,
)
from headrace.data.tables.stored import Reader, Writer
from headrace.errors import OptionError, SourceWarning
from headrace.notices import warn_user

_PANDAS_INDEX = "__index_level_"


class ParquetDataset(RowDataset):
    """Rows of Parquet files, as dicts of column name to value.

    Numbers and truth values are NumPy scalars of the column's type, lists of numbers are arrays,
    texts are ``str``: the default collation makes tensors of the column's type, and lists of texts.
    Where all columns are numbers or lists of a fixed size, batches are gathered without Python per
    sample.

    What is a number in one plain way comes as one: a timestamp, a time and a duration as the int64
    of its unit (since 1970 in UTC, since midnight), a date as the int64 of its days since 1970, a
    decimal as float64. Structs and maps are dicts, lists of anything else lists. A struct
    ``{bytes, path}`` whose bytes are an image, as Hugging Face publishes them, is decoded.

    A row group has to be decoded as a whole, so rows in any order are read from decoded columns:
    in memory up to 64 MiB, beyond that in files of a cache directory, which are written once and
    mapped into memory. With ``cache_dir=False`` nothing is written: row groups are decoded when
    their rows are asked for, and the last few stay in memory. Read those in order, or with
    :meth:`sampler`.

    Args:
        path: a file, several, or a directory, whose ``.parquet`` files are read in the order of
            their names. Directories in it that are called ``year=2020`` are a column, of int64
            where all its values are whole numbers, else of texts. Braces (``{000..146}.parquet``)
            and patterns are written out. Files may lie in stores (``s3://``, ``gs://``, ``az://``)
            or on a web server (``https://``); a row group of them is read by ranges, the columns
            that are wanted, at once.
        columns: names of the columns to read, in the order of a sample's keys; default all.
        missing: "error", or the number to put where a number is missing; a missing text or list
            is then an empty one.
        cache_dir: where decoded columns are kept. None is ``~/.cache/headrace/tables`` for more
            than 64 MiB and memory for less; False reads row groups as they are needed.
        groups_in_memory: how many row groups stay in memory with ``cache_dir=False``; as many are
            shuffled together by :meth:`sampler`.
        images: what decodes images in structs: an :class:`ImageDecoder`, whose default is a uint8
            tensor (3, H, W); False leaves the structs as they are.
        storage_options: of the store that the files are in, as of :class:`TarDataset`.

    Raises:
        SourceError: a file that is no Parquet, files of different types, a directory without
            Parquet, a missing value, a decimal with more digits than a float64 holds, a map with a
            key twice. It names file, row and column.
        MissingColumnError: a column that is not there.
        ArrayTypeError: a column of a type that has no plain meaning, such as intervals.
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
        images: ImageDecoder | Literal[False] | None = None,
        storage_options: Options | None = None,
    ) -> None:
        stores = Stores(storage_options)
        paths, self._partitions, objects = parquet_files(path, stores)
        self._remote = Remote(objects, stores)
        if groups_in_memory < 1:
            raise OptionError(f"groups_in_memory= is at least 1, got {groups_in_memory}.")
        self._columns = [columns] if isinstance(columns, str) else columns and list(columns)
        self._missing = check_missing(missing)
        self._cache_dir = cache_dir
        self._keep = groups_in_memory
        self._decoder = checked_images(images)
        options = {
            "columns": self._columns,
            "missing": repr(missing),
            "images": self._decoder is not None,
            "directories": [*self._partitions.columns],
        }
        self._key = describe(paths, options, objects)
        self._load()
        if columns is None:
            _warn_of_index(paths[0], self.column_names)

    def _load(self) -> None:
        self._rows: Rows
        if self._cache_dir is not False:
            entry = entry_of(self._cache_dir or default_directory(), self._key)
            ready = opened(entry, self._key)
            if ready is not None:
                self._rows = _stored(self._decoder, *ready)  # without a look into the Parquet files
                return
        groups = self._groups()
        if self._cache_dir is False:
            self._rows = GroupRows(groups, self._keep)
        elif cache_directory(self._cache_dir, groups.size_bytes()) is None:
            memory = Memory()
            extra = _decode(groups, memory)
            self._rows = _stored(self._decoder, memory.arrays(), extra)
        else:
            ready = converted(entry, self._key, partial(_decode, groups))
            self._rows = _stored(self._decoder, *ready)

    @property
    def units(self) -> dict[str, str]:
        """What the numbers of dates and times count, by column: "us since 1970-01-01"."""
        path = self._key["files"][0][0]
        remote = self._remote.opened([path]).get(path)
        return units_of(open_parquet(path, remote).schema_arrow, self.column_names)

    def _groups(self) -> Groups:
        return Groups(
            self._key,
            self._columns,
            self._missing,
            self._partitions,
            self._decoder,
            remote=self._remote,
        )

    def sampler(self, generator: torch.Generator | None = None) -> RowGroupSampler:
        """Return a shuffle that reads each row group once an epoch, for ``cache_dir=False``.

        The order of the row groups is shuffled, and then the rows of ``groups_in_memory`` groups
        at a time. Where columns are decoded already, ``shuffle=True`` mixes better and costs no
        more.

        Args:
            generator: where the order comes from; None is torch's global generator.
        """
        rows = self._rows
        groups = rows.groups if isinstance(rows, GroupRows) else self._groups()
        return RowGroupSampler(groups.sizes, self._keep, generator)

    def __shuffle__(self, generator: torch.Generator | None) -> RowGroupSampler | None:
        """Return :meth:`sampler` where row groups are fetched; None, torch's order, elsewhere."""
        return self.sampler(generator) if self._remote and self._cache_dir is False else None

    def _identity(self) -> str:
        return f"{json.dumps(self._key, sort_keys=True)} {self._decoder}"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what was asked for, not what was read."""
        return {k: v for k, v in self.__dict__.items() if k != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()  # of the same key: what was decoded, or the same files

    def __repr__(self) -> str:
        return f"ParquetDataset({len(self):,} rows of {len(self.column_names)} columns)"


def _warn_of_index(path: str, names: Sequence[str]) -> None:
    index = [name for name in names if name.startswith(_PANDAS_INDEX)]
    if index:
        others = [name for name in names if name not in index]
        warn_user(
            f"{path}: column {index[0]!r} is the index of the pandas frame that was written, and a "
            f"column like the others here. Write columns={others!r:.200}, or write the file with "
            f"index=False.",
            SourceWarning,
        )


def _decode(groups: Groups, sink: Sink) -> dict[str, Any]:
    """Write the columns of all row groups to ``sink``; return what they are made of."""
    writer = Writer(sink)
    with Progress(f"decoding {groups.paths[0]}", groups.rows, "rows") as progress:
        for number in range(len(groups)):
            for name, column in groups.read(number).items():
                writer.append(name, column)
            progress.advance(int(groups.sizes[number]))
    groups.check_unchanged()
    return {"columns": [[n, writer.made_of(n)] for n in groups.names], "rows": groups.rows}


def _stored(
    decoder: ImageDecoder | None, arrays: Mapping[str, Array], extra: Mapping[str, Any]
) -> StoredRows:
    rows, reader = int(extra["rows"]), Reader(arrays, decoder)
    table = {name: reader.column(name, made_of, rows) for name, made_of in extra["columns"]}
    return StoredRows(table, rows)
