"""Arrow tables, polars and pandas frames as datasets of rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from headrace.data.gatherer import Array
from headrace.data.images.decoder import ImageDecoder
from headrace.data.tables.arrow import (
    Missing,
    Place,
    check_missing,
    checked_images,
    column_of,
    select,
)
from headrace.data.tables.columns import RowDataset, StoredRows
from headrace.data.tables.kinds import find_images, first_batches, may_hold_images, plain_kind
from headrace.data.tables.nested import Column
from headrace.data.tables.pieces import Pieces
from headrace.errors import ArrayTypeError
from headrace.extras import import_extra
from headrace.tree import TORCH_DTYPES


class TableDataset(RowDataset):
    """Rows of a ``pyarrow.Table``, a polars or a pandas frame, as dicts of column name to value.

    Numbers and truth values are NumPy scalars of the column's type, lists are arrays, texts are
    ``str``: the default collation makes tensors of the column's type, and lists of texts. Where
    all columns are numbers or lists of one length, batches are gathered without Python per sample.

    Columns of numbers are not copied where they lie in one piece and nothing is missing; truth
    values of Arrow and polars (a bit each) are. A frame is not to be changed while it is read.

    Args:
        table: the table or frame. The index of a pandas frame is left out: write
            ``frame.reset_index()`` to have it as a column. NaN is a number like any other in
            columns of floats.
        columns: names of the columns, in the order of a sample's keys; default all.
        missing: "error", or the number to put where a number is missing; a missing text or list
            is then an empty one.
        images: what decodes images in structs ``{bytes, path}``, as in :class:`ParquetDataset`.

    Raises:
        ArrayTypeError: something else than a table, or a column that has no plain meaning.
        SourceError: a missing value; it names row and column.
        MissingColumnError: a column that is not there.
    """

    def __init__(
        self,
        table: Any,
        columns: Sequence[str] | None = None,
        *,
        missing: Missing = "error",
        images: ImageDecoder | Literal[False] | None = None,
    ) -> None:
        check_missing(missing)
        decoder = checked_images(images)
        kind = library_of(table)
        if kind is None:
            name = type(table).__name__
            line = _LINES.get(name, "TableDataset(pyarrow.table({'x': ...}))")
            raise ArrayTypeError(
                f"{name} is no pyarrow.Table, no polars and no pandas DataFrame. Write {line}."
            )
        where = f"the {kind} {type(table).__name__}"
        read = {"pyarrow": _arrow, "polars": _polars, "pandas": _pandas, "datasets": _arrow}[kind]
        if kind == "datasets":
            table = _table_of(table)
        is_arrow = kind in ("pyarrow", "datasets")
        names = [str(name) for name in (table.schema.names if is_arrow else table.columns)]
        picked = select(names, columns, where)
        places = {n: Place(where, n, missing, decoder=decoder) for n in picked}
        found = {n: read(table, names.index(n), place) for n, place in places.items()}
        self._rows = StoredRows({n: _block(column) for n, column in found.items()}, len(table))

    def __repr__(self) -> str:
        return f"TableDataset({len(self):,} rows of {len(self.column_names)} columns)"


def as_dataset(source: Any) -> Any:
    """Return a :class:`TableDataset` of a table or frame, and anything else as it is.

    No library is imported: where one was not, there can be no frame of it.
    """
    return source if library_of(source) in (None, "datasets") else TableDataset(source)


def _block(column: Column) -> Column:
    """Return lists that are all of one length as an array of rows, which gathers."""
    if not isinstance(column, Pieces) or column.kind != "array" or not len(column):
        return column
    widths = np.diff(column.offsets)
    if not widths[0] or (widths != widths[0]).any():
        return column
    values = column.values[column.offsets[0] : column.offsets[-1]]
    return values.reshape(len(column), widths[0])


# What is close to a table, by the name of its type.
_LINES = {
    "LazyFrame": "TableDataset(frame.collect())",
    "RecordBatch": "TableDataset(pyarrow.Table.from_batches([batch]))",
    "RecordBatchReader": "TableDataset(reader.read_all())",
    "FileSystemDataset": "ParquetDataset(path), or TableDataset(dataset.to_table())",
    "Series": "TableDataset(series.to_frame())",
    "DatasetDict": 'TableDataset(datasets["train"])',
    "dict": "TableDataset(pyarrow.table(columns))",
}
_KINDS = (
    ("pyarrow", "Table"),
    ("polars", "DataFrame"),
    ("pandas", "DataFrame"),
    ("datasets", "Dataset"),
)


def library_of(table: Any) -> str | None:
    """Return the library that a table or frame is of; None if it is no table."""
    for library, name in _KINDS:
        kind = getattr(sys.modules.get(library), name, None)
        if isinstance(kind, type) and isinstance(table, kind):
            return library
    return None


def _table_of(dataset: Any) -> Any:
    """Return the Arrow table of a Hugging Face dataset, with its columns, rows and their order."""
    if dataset._indices is None:
        return dataset.data.table.select(dataset.column_names)
    return dataset.with_format("arrow")[:]


def _arrow(table: Any, number: int, place: Place) -> Column:
    return _chunked(table.column(number), place)


def _polars(frame: Any, number: int, place: Place) -> Column:
    return _chunked(frame.to_series(number).to_arrow(), place)


def _chunked(found: Any, place: Place) -> Column:
    pa = import_extra("pyarrow", "tables")
    column = found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])
    if place.decoder is not None and may_hold_images(plain_kind(column.type)):
        place = replace(place, images=find_images(first_batches(column), place.name))
    return column_of(column, place)


def _pandas(frame: Any, number: int, place: Place) -> Column:
    series = frame.iloc[:, number]
    if isinstance(series.dtype, np.dtype) and series.dtype in TORCH_DTYPES:
        values: Array = series.to_numpy()
        return values
    pa = import_extra("pyarrow", "tables")
    if hasattr(series.dtype, "fill_value"):
        raise ArrayTypeError(
            f"{place.where}, column {place.name!r}: it is sparse. Write "
            f"frame[{place.name!r}].sparse.to_dense() in its place."
        )
    try:
        found = pa.Array.from_pandas(series)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ArrayTypeError(
            f"{place.where}, column {place.name!r}: values of several types ({error}). Give them "
            f"one: frame[{place.name!r}].astype(str)."
        ) from error
    return _chunked(found, place)
