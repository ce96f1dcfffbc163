"""Batches of a Hugging Face ``datasets.Dataset``, gathered from its Arrow table.

The rules are those of its formatters (none, "torch", "numpy") followed by the default collation.
They are checked on the first rows when a gatherer is made: where the two differ, the dataset is
asked for its samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from headrace.data.gather import BUILDERS_BY_NAME
from headrace.data.gatherer import Array, IndexArray, Leaf
from headrace.extras import import_extra
from headrace.tree import NUMPY_DTYPES, leaves

_CHECKED_ROWS = 2
# Up to here the chunks of a table are put together once; beyond, each is read where it lies.
_JOINED_BYTES = 1 << 28


class _Chunks:
    """A column of numbers, or of lists of one length, in the chunks of its table."""

    def __init__(self, column: Any, width: int | None, joined: bool) -> None:
        self._width = width
        arrays = [self._array(chunk) for chunk in column.chunks if len(chunk)]
        if joined and len(arrays) > 1:
            arrays = [np.concatenate(arrays)]
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])

    def _array(self, chunk: Any) -> Array:
        flat = chunk if self._width is None else chunk.flatten()
        values: Array = flat.to_numpy(zero_copy_only=False)
        return values if self._width is None else values.reshape(len(chunk), self._width)

    def take(self, indices: IndexArray) -> Array:
        if len(self._arrays) == 1:
            return self._arrays[0].take(indices, 0)
        taken = np.empty((len(indices), *self._arrays[0].shape[1:]), self._arrays[0].dtype)
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        stops = np.searchsorted(ordered, self._ends)
        start = 0
        for number in np.flatnonzero(np.diff(stops, prepend=0)):
            places = order[start : (stop := stops[number])]
            first = self._ends[number] - len(self._arrays[number])
            taken[places] = self._arrays[number][ordered[start:stop] - first]
            start = stop
        return taken


class HuggingFaceRows:
    """Gathers the columns of a ``datasets.Dataset``."""

    watched: Sequence[torch.Tensor] | None = ()  # its tables do not change

    def __init__(self, spec: dict[str, Any], table: list[_Chunks], rows: Any, length: int) -> None:
        self.spec = spec
        self._table = table
        self._rows = rows
        self._length = length

    def __len__(self) -> int:
        return self._length

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        """Write the rows at ``indices``, converted as the format converts them."""
        if self._rows is not None:
            indices = self._rows.take(indices).astype(np.intp)
        targets = iter(out)
        for column, spec in zip(self._table, self.spec.values(), strict=True):
            values = column.take(indices)
            if isinstance(spec, Leaf):
                next(targets)[...] = values
            else:  # a list for each place in the lists
                for place in range(len(spec)):
                    next(targets)[...] = values[:, place]


def gather_huggingface(dataset: Any) -> HuggingFaceRows | None:
    """Return the gatherer of a ``datasets.Dataset``, None where its samples have to be asked for.

    It gathers columns of numbers, truth values and lists of those of one length, in the formats
    None, "torch" and "numpy" without options of theirs.
    """
    form = dataset.format
    if form["type"] not in (None, "torch", "numpy") or form["format_kwargs"]:
        return None
    order = [name for name in dataset.column_names if name in form["columns"]]
    if form["output_all_columns"] or not len(dataset) or not order:
        return None
    if torch.get_default_device().type != "cpu":
        return None
    table = dataset.data.table
    found = [_column_spec(table.column(name), dataset, name) for name in order]
    spec = {name: leaf for name, leaf in zip(order, found, strict=True) if leaf is not None}
    if len(spec) < len(order):
        return None
    joined = sum(table.column(name).nbytes for name in order) <= _JOINED_BYTES
    columns = [_Chunks(table.column(n), _width(table.column(n)), joined) for n in order]
    rows = None
    if dataset._indices is not None:
        rows = _Chunks(dataset._indices.column(0), None, joined=True)
    gatherer = HuggingFaceRows(spec, columns, rows, len(dataset))
    return gatherer if _agrees(gatherer, dataset) else None


def _column_spec(column: Any, dataset: Any, name: str) -> Any:
    """Return what the default collation makes of a column; None for one that is not gathered."""
    types = import_extra("pyarrow", "tables").types
    width, kind = _width(column), column.type
    if column.null_count or type(dataset.features[name]).__name__ not in _FEATURES:
        return None
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
        if not width:
            return None
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    if not number or types.is_uint64(kind):
        return None
    formatted = dataset.format["type"] is not None
    dtype = torch.float32 if formatted else torch.float64
    if types.is_boolean(kind):
        dtype = torch.bool
    elif types.is_integer(kind):
        dtype = torch.int64
    if width is None:
        return Leaf((), dtype)
    return Leaf((width,), dtype) if formatted else [Leaf((), dtype)] * width


_FEATURES = ("Value", "ClassLabel", "List", "LargeList", "Sequence")


def _width(column: Any) -> int | None:
    """Return the length of a column's lists: None for no lists, 0 for lists of several lengths."""
    pa = import_extra("pyarrow", "tables")
    if pa.types.is_fixed_size_list(column.type):
        nulls = any(chunk.flatten().null_count for chunk in column.chunks)
        return 0 if nulls else int(column.type.list_size)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return None
    widths: set[int] = set()
    for chunk in column.chunks:
        widths.update(np.unique(chunk.value_lengths().to_numpy(zero_copy_only=False)).tolist())
        if len(widths) > 1 or chunk.flatten().null_count:
            return 0
    return int(widths.pop()) if widths else 0


def _agrees(gatherer: HuggingFaceRows, dataset: Any) -> bool:
    """Say whether a gather of the first rows is their default collation, to the bit."""
    count = min(_CHECKED_ROWS, len(dataset))
    indices = np.arange(count)
    specs = leaves(gatherer.spec)
    out = [np.empty((count, *leaf.shape), NUMPY_DTYPES[leaf.dtype]) for leaf in specs]
    gatherer.gather(indices, out)
    batch = default_collate(dataset.__getitems__(indices.tolist()))
    tensors = leaves(batch)
    return (
        list(batch) == list(gatherer.spec)
        and len(tensors) == len(out)
        and all(
            isinstance(tensor, torch.Tensor)
            and tensor.dtype == leaf.dtype
            and tensor.shape == array.shape
            and tensor.numpy().tobytes() == array.tobytes()
            for tensor, leaf, array in zip(tensors, specs, out, strict=True)
        )
    )


BUILDERS_BY_NAME["datasets.arrow_dataset.Dataset"] = gather_huggingface
