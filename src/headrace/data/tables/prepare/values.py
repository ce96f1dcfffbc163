"""The columns of any table as arrays of three types: float64, datetime64 and texts."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Subset

from headrace.data.gatherer import Array
from headrace.data.tables.columns import RowDataset
from headrace.data.tables.csv import CSVDataset
from headrace.data.tables.csv.form import NULL_VALUES
from headrace.data.tables.frames import library_of
from headrace.errors import ArrayMismatchError, ArrayTypeError

_MISSING = {*NULL_VALUES, "?", "-", "--", "."}


def columns_of(table: Any) -> dict[str, Array]:
    """Return the columns of a table: float64 with NaN, datetime64 with NaT, or str with None.

    Args:
        table: a dict of columns, a ``pyarrow.Table``, a polars or pandas frame, a dataset of rows
            (`TableDataset`, `ParquetDataset`), a `CSVDataset`, or a ``Subset`` of one of these.

    Raises:
        ArrayTypeError: it is something else, or a column's values are no numbers, dates or texts.
        ArrayMismatchError: columns of different lengths.
    """
    found = {str(name): _column(str(name), values) for name, values in _named(table)}
    lengths = {name: len(column) for name, column in found.items()}
    if len(set(lengths.values())) > 1:
        raise ArrayMismatchError(
            f"the columns of a table need one value for each row, and they have {lengths}."
        )
    return found


def _named(table: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(table, Mapping):
        return table.items()
    if isinstance(table, Subset):
        rows = np.asarray(table.indices, np.int64)
        return [(name, column[rows]) for name, column in columns_of(table.dataset).items()]
    if isinstance(table, CSVDataset):
        return [
            (name, _of_csv(table.features[:, place], table.categories.get(name)))
            for place, name in enumerate(table.feature_names)
        ]
    if isinstance(table, RowDataset):
        samples = table.__getitems__(range(len(table)))
        return [(name, [row[name] for row in samples]) for name in table.column_names]
    kind = library_of(table)
    lists = {"pandas": "tolist", "polars": "to_list", "pyarrow": "to_pylist"}
    if kind in lists:
        names = table.column_names if kind == "pyarrow" else table.columns
        return [(str(name), getattr(table[name], lists[kind])()) for name in names]
    raise ArrayTypeError(
        f"{type(table).__name__} is no table. Write prepare_columns({{'age': [31, 45], 'city': "
        f"['Rome', 'Oslo']}}), or give it a pyarrow.Table, a data frame or a TableDataset."
    )


def _of_csv(codes: Array, categories: tuple[str, ...] | None) -> Any:
    if categories is None:
        return codes
    return [categories[int(code)] if code >= 0 else None for code in codes]


def _column(name: str, values: Any) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray) and values.ndim == 1:
        if values.dtype.kind in "biuf":
            return values.astype(np.float64)
        if values.dtype.kind == "M":
            return values.astype("datetime64[us]")
    listed = [None if _is_nothing(value) else _plain(value) for value in values]
    there = [value for value in listed if value is not None]
    if there and all(isinstance(value, (bool, int, float)) for value in there):
        return np.array([math.nan if v is None else float(v) for v in listed], np.float64)
    if there and all(isinstance(value, datetime.date) for value in there):
        return np.array(
            [np.datetime64("NaT") if v is None else _naive(v) for v in listed], "M8[us]"
        )
    if any(isinstance(value, (list, dict, tuple, bytes, np.ndarray)) for value in there):
        kind = type(there[0]).__name__
        raise ArrayTypeError(
            f"column {name!r} has values of type {kind}, which are neither numbers, dates nor "
            f"texts. Leave it out, or make columns of numbers of it."
        )
    return as_texts(listed)


def _is_nothing(value: Any) -> bool:
    # NaN and NaT, of whichever library, are not equal to themselves.
    return value is None or bool(value != value)  # noqa: PLR0124


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _naive(moment: Any) -> Any:
    if getattr(moment, "tzinfo", None) is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return np.datetime64(moment, "us")


def as_texts(values: Iterable[Any]) -> Array:
    """Return values as an array of texts without spaces around them; None where one is missing."""
    found = [_text(value) for value in values]
    array = np.empty(len(found), object)
    array[:] = found
    return array


def _text(value: Any) -> str | None:
    if value is None or value != value:  # noqa: PLR0124
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)  # "1", as it is in the file
    text = str(value).strip()
    return None if text in _MISSING else text
