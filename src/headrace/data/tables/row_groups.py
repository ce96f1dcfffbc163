"""Parquet read a row group at a time: what is in the files, and rows from the groups last read."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from headrace.data.gatherer import Array, Gatherer, IndexArray, Leaf
from headrace.data.images.decoder import ImageDecoder
from headrace.data.stores.seekable import SeekableObject
from headrace.data.tables.arrow import Missing, Place, column_of, select
from headrace.data.tables.cache import Key, check_unchanged
from headrace.data.tables.kinds import (
    find_images,
    first_batches_of_file,
    leaf_of,
    may_hold_images,
    plain_kind,
)
from headrace.data.tables.nested import Column, map_arrays, take
from headrace.data.tables.partitions import Partitions
from headrace.data.tables.remote import Remote, range_of
from headrace.errors import HeadraceError, SourceError
from headrace.extras import import_extra
from headrace.sampling.groups import GroupSampler

_READS_BEFORE_WARNING = 16
_TIMES_OVER = 4


class Groups:
    """The row groups of Parquet files, in order, and the columns that are read of them.

    Raises:
        SourceError: a file that is no Parquet, whose columns have other types than the first's, or
            one that its directories hold too.
        MissingColumnError: a column that is not there.
    """

    def __init__(
        self,
        key: Key,
        wanted: Sequence[str] | None,
        missing: Missing,
        partitions: Partitions,
        decoder: ImageDecoder | None,
        *,
        remote: Remote,
    ) -> None:
        self.paths = [path for path, _, _ in key["files"]]
        self._missing = missing
        self._key = key
        self._partitions = partitions
        self._decoder = decoder
        self._remote = remote.opened(self.paths)
        self._files = [open_parquet(path, self._remote.get(path)) for path in self.paths]
        for path, file in zip(self.paths, self._files, strict=True):
            self._check_apart(path, file.schema_arrow)
        first = self._files[0].schema_arrow
        known = {field.name: plain_kind(field.type) for field in first}
        self.names = select([*first.names, *partitions.columns], wanted, self.paths[0])
        known |= {name: partitions.kind(name) for name in partitions.columns}
        self.schema = {name: known[name] for name in self.names}
        for path, file in zip(self.paths, self._files, strict=True):
            self._check_schema(path, file.schema_arrow)
        self._images = frozenset().union(*map(self._find_images, self.names))
        self._groups = [
            (file, group)
            for file in range(len(self._files))
            for group in range(self._files[file].metadata.num_row_groups)
        ]
        self.sizes = np.array(
            [self._files[f].metadata.row_group(g).num_rows for f, g in self._groups], np.int64
        )
        self.ends = np.cumsum(self.sizes)

    def _check_apart(self, path: str, schema: Any) -> None:
        both = sorted(set(schema.names) & set(self._partitions.columns))
        if both:
            raise SourceError(
                f"{path} has a column {both[0]!r}, and so have the names of its directories. Give "
                f"the files alone, as a list: ParquetDataset([{path!r}, ...])."
            )

    def _check_schema(self, path: str, schema: Any) -> None:
        stored = [name for name in self.names if name not in self._partitions.columns]
        if stored:
            select(schema.names, stored, path)
        for name in stored:
            kind, found = self.schema[name], plain_kind(schema.field(name).type)
            if found != kind:
                raise SourceError(
                    f"{path}, column {name!r} has type {found}, in {self.paths[0]} it has {kind}. "
                    f"Write the files with one schema, or read them apart."
                )

    def _find_images(self, name: str) -> frozenset[str]:
        if self._decoder is None or not may_hold_images(self.schema[name]):
            return frozenset()
        for path, file in zip(self.paths, self._files, strict=True):
            with _decoding(f"{path}, column {name!r}"):
                found = find_images(first_batches_of_file(file, name), name)
            if found:
                return found
        return frozenset()

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def rows(self) -> int:
        """The rows of all groups."""
        return int(self.sizes.sum())

    def size_bytes(self) -> int:
        """Return about how many bytes the columns take once they are read."""
        leaves = {name: leaf_of(kind) for name, kind in self.schema.items()}
        fixed = sum(leaf.size_bytes for leaf in leaves.values() if leaf is not None)
        total = self.rows * fixed
        for file, group in self._groups:
            with _decoding(f"{self.paths[file]}, row group {group}"):
                metadata = self._files[file].metadata.row_group(group)
                for number in range(metadata.num_columns):
                    chunk = metadata.column(number)
                    path = chunk.path_in_schema
                    name = path if path in self.schema else path.partition(".")[0]
                    if name in self.schema and leaves[name] is None:
                        total += chunk.total_uncompressed_size
        return int(total)

    def read(self, number: int) -> dict[str, Column]:
        """Read one row group.

        Raises:
            SourceError: a value that is missing, or bytes that cannot be decoded.
            SourceChangedError: a file is no longer what it was.
        """
        file, group = self._groups[number]
        path = self.paths[file]
        before = [n for n in range(number) if self._groups[n][0] == file]
        first_row = int(self.sizes[before].sum())
        table: dict[str, Column] = {}
        try:
            with self._held(file, group), _decoding(f"{path}, row group {group}"):
                for name in self.names:
                    table[name] = self._read_column(number, name, first_row)
        except SourceError:
            self.check_unchanged(file)
            raise
        self.check_unchanged(file)  # behind reading: what was read before a change is thrown away
        return table

    @contextmanager
    def _held(self, file: int, group: int) -> Iterator[None]:
        """Have a row group of an object here, fetched at once, while it is decoded."""
        remote = self._remote.get(self.paths[file])
        if remote is None:
            yield
            return
        with _decoding(f"{self.paths[file]}, row group {group}"):
            metadata = self._files[file].metadata.row_group(group)
            chunks = map(metadata.column, range(metadata.num_columns))
            wanted = [c for c in chunks if c.path_in_schema.partition(".")[0] in self.schema]
            remote.hold([range_of(chunk) for chunk in wanted])
        try:
            yield
        finally:
            remote.hold([])

    def _read_column(self, number: int, name: str, first_row: int) -> Column:
        file, group = self._groups[number]
        path = self.paths[file]
        place = Place(path, name, self._missing, first_row, None, self._images, self._decoder)
        if name in self._partitions.columns:
            return self._partitions.column(file, int(self.sizes[number]), place)
        # A column at a time, copied: Arrow's pool keeps what it frees, NumPy does not, so that a
        # group costs its own size and no more.
        read = self._files[file].read_row_group(group, [name], use_threads=False)
        read.validate(full=True)  # or text that is no UTF-8 is found when it is asked for
        return map_arrays(column_of(read.column(name), place), np.array)

    def check_unchanged(self, file: int | None = None) -> None:
        """Check that the files, or one of them, are what they were.

        Raises:
            SourceChangedError: one is not.
        """
        files = self._key["files"]
        check_unchanged(self._key if file is None else {"files": files[file : file + 1]})

    def spec(self) -> dict[str, Leaf] | None:
        """Return the spec of a gatherer, None where a column is no array."""
        found = {name: leaf_of(kind) for name, kind in self.schema.items()}
        known = {name: leaf for name, leaf in found.items() if leaf is not None}
        return known if len(known) == len(found) else None


@contextmanager
def _decoding(where: str) -> Iterator[None]:
    """Name the place of what Arrow raises: that is whatever a broken file makes it.

    Raises:
        SourceError: it raised.
    """
    try:
        yield
    except (HeadraceError, ConnectionError, PermissionError, FileNotFoundError):
        raise
    except Exception as error:
        raise SourceError(f"{where}: cannot be decoded ({error}). Write the file again.") from error


def open_parquet(path: str, remote: SeekableObject | None = None) -> Any:
    """Return the ``ParquetFile`` of a path, or of an object that is called so.

    Raises:
        SourceError: it is none.
    """
    parquet = import_extra("pyarrow.parquet", "tables")
    try:
        # Not mapped: a file cut short would be a bus error. A buffer for each column, none for all.
        buffer_bytes = 1 << 16 if remote is None else 0
        file = parquet.ParquetFile(remote or path, buffer_size=buffer_bytes, pre_buffer=False)
        file.schema_arrow.to_string(show_schema_metadata=False)  # are its names text?
        return file
    except (HeadraceError, ConnectionError):
        raise
    except Exception as error:  # Arrow raises whatever a broken file makes it
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = str(error).rstrip(".")
        raise SourceError(
            f"{path} is no Parquet file that can be read ({what}). {_remedy(path, remote)}"
        ) from error


def _remedy(path: str, remote: SeekableObject | None) -> str:
    """Return what to do with a file that is no Parquet: its first bytes may say what it is."""
    if remote is not None:
        return "Write it again."
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"ARROW1"):
        return f"It is an Arrow file: write TableDataset(pyarrow.feather.read_table({path!r}))."
    if head and b"PAR1" not in head[:4] and not any(byte < 9 for byte in head):
        return f"It looks like text: write CSVDataset({path!r})."
    return "Write it again."


class GroupRows:
    """Rows read a row group at a time; the groups last used stay in memory.

    Args:
        groups: the row groups.
        keep: how many of them stay.
    """

    watched: Sequence[torch.Tensor] | None = ()  # a file that changes is an error

    def __init__(self, groups: Groups, keep: int) -> None:
        self.names = groups.names
        self.spec: Any = groups.spec()
        self.groups = groups
        self._keep = keep
        self._read: OrderedDict[int, Mapping[str, Column]] = OrderedDict()
        self._reads = self._read_rows = self._given_rows = 0
        self._warned = False

    def __len__(self) -> int:
        return self.groups.rows

    def gatherer(self) -> Gatherer | None:
        """Return what gathers whole batches, None where a column is no array."""
        return self if self.spec is not None and len(self) else None

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        """Write the rows at ``indices`` to ``out``."""
        for places, rows, table in self._by_group(indices):
            for target, column in zip(out, table.values(), strict=True):
                target[places] = take(column, rows)

    def take(self, indices: IndexArray) -> Sequence[Iterable[Any]]:
        """Return for each column its values at ``indices``."""
        taken: list[list[Any]] = [[None] * len(indices) for _ in self.names]
        for places, rows, table in self._by_group(indices):
            for values, column in zip(taken, table.values(), strict=True):
                for place, value in zip(places.tolist(), take(column, rows), strict=True):
                    values[place] = value
        return taken

    def _by_group(
        self, indices: IndexArray
    ) -> Iterator[tuple[IndexArray, IndexArray, Mapping[str, Column]]]:
        owners = np.searchsorted(self.groups.ends, indices, side="right")
        numbers = np.unique(owners).tolist()
        self._given_rows += len(indices)
        for number in sorted(numbers, key=lambda number: number not in self._read):
            places = np.flatnonzero(owners == number)
            first = int(self.groups.ends[number] - self.groups.sizes[number])
            yield places, indices[places] - first, self._group(number)

    def _group(self, number: int) -> Mapping[str, Column]:
        table = self._read.pop(number, None)
        if table is None:
            while len(self._read) >= self._keep:
                self._read.popitem(last=False)  # before the next one is read, not behind it
            table = self.groups.read(number)
            self._note(number)
        self._read[number] = table
        return table

    def _note(self, number: int) -> None:
        """Warn where many more rows are decoded than are asked for."""
        self._reads += 1
        self._read_rows += int(self.groups.sizes[number])
        times = self._read_rows / self._given_rows
        if self._reads > _READS_BEFORE_WARNING and times > _TIMES_OVER and not self._warned:
            self._warned = True
            warnings.warn(
                f"row groups are decoded {times:.0f} times over: rows are asked for across more "
                f"than the {self._keep} groups that stay in memory, or by several workers. Write "
                f"DataLoader(dataset, sampler=dataset.sampler()) with few workers, or leave out "
                f"cache_dir=False.",
                stacklevel=2,
            )


class RowGroupSampler(GroupSampler):
    """A shuffle that reads each row group once: of the groups, then of the rows of a few of them.

    Args:
        group_sizes: rows of each row group.
        window: how many row groups are shuffled together.
        generator: where the order comes from; None is torch's global generator.
    """

    index_chunks = (
        GroupSampler.index_chunks
    )  # of its own: one that inherits it may be another order
