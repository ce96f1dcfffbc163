"""The gatherer of columns: tensors and arrays whose rows are samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from headrace.data.gatherer import CARRIERS, Array, IndexArray, Leaf
from headrace.data.mapped import memory_file
from headrace.errors import ArrayMismatchError
from headrace.tree import NUMPY_DTYPES, TORCH_DTYPES, is_namedtuple, leaves


class Columns:
    """A gatherer over tensors and arrays with as many rows as the dataset has samples."""

    def __init__(self, spec: Any, sources: Sequence[torch.Tensor | Array]) -> None:
        self.spec = spec
        self.watched = _watchable(sources)
        self._sources = sources  # keeps what the rows view alive
        self._columns = [_Column(source) for source in sources]
        self._length = len(sources[0])

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        """Take rows ``indices`` of each column."""
        for column, target in zip(self._columns, out, strict=True):
            column.take(indices, target)


def _watchable(sources: Sequence[torch.Tensor | Array]) -> Sequence[torch.Tensor] | None:
    tensors = [s for s in sources if isinstance(s, torch.Tensor)]
    return None if any(t.is_inference() for t in tensors) else tensors


def columns(tree: Any) -> Columns | None:
    """Return the gatherer of a tree of tensors and arrays, or None where they do not fit.

    Args:
        tree: nested dicts, tuples, lists and named tuples of tensors and NumPy arrays, each of
            shape ``(samples, ...)``. The batches have the same nesting, as the default collation
            makes it (a tuple becomes a list).

    What cannot be gathered (tensors that require a gradient, are not dense CPU tensors, or are of a
    subclass of ``torch.Tensor``) gives None: the dataset is then asked sample by sample.

    Raises:
        ArrayMismatchError: the arrays have different lengths.
    """
    sources = leaves(tree)
    if not sources or not all(map(_fits, sources)):
        return None
    lengths = [len(source) for source in sources]
    if len(set(lengths)) > 1:
        raise ArrayMismatchError(
            f"the columns have different lengths: {lengths}. All need one row for each sample."
        )
    return Columns(_spec(tree), sources)


def _fits(source: object) -> bool:
    if isinstance(source, np.ndarray):
        native = source.dtype in TORCH_DTYPES and source.dtype.isnative
        plain = type(source) in (np.ndarray, np.memmap)
        # Arrays become tensors on the default device, as in torch.
        return native and plain and source.ndim > 0 and torch.get_default_device().type == "cpu"
    return (
        type(source) is torch.Tensor
        and source.ndim > 0
        and source.device.type == "cpu"
        and source.layout is torch.strided
        and not (source.requires_grad or source.is_quantized or source.is_nested)
        and not (source.is_conj() or source.is_neg())
        and (source.dtype in NUMPY_DTYPES or source.itemsize in CARRIERS)
    )


def _spec(tree: Any) -> Any:
    """Return what the default collation makes of samples that are rows of ``tree``."""
    if isinstance(tree, Mapping):
        return {key: _spec(value) for key, value in tree.items()}
    if is_namedtuple(tree):
        return type(tree)(*(map(_spec, tree)))
    if isinstance(tree, (tuple, list)):
        return [_spec(value) for value in tree]
    dtype = TORCH_DTYPES[tree.dtype] if isinstance(tree, np.ndarray) else tree.dtype
    return Leaf(tuple(tree.shape[1:]), dtype)


class _Column:
    """A tensor or array whose rows are samples."""

    def __init__(self, source: torch.Tensor | Array) -> None:
        array = source if isinstance(source, np.ndarray) else _carried(source)
        self._array = array
        self._in_file = memory_file(array) is not None
        # np.memmap.__array_finalize__ costs more than a row: take from a plain array.
        self._rows = array.view(np.ndarray) if isinstance(array, np.memmap) else array
        self._contiguous = array.flags.c_contiguous
        # In an archive, elements stand at any byte: of those, NumPy would copy the whole array.
        self._as_bytes = self._contiguous and not array.flags.aligned
        if self._as_bytes:
            self._rows = _row_bytes(self._rows)

    def take(self, indices: IndexArray, out: Array) -> None:
        if self._in_file:
            memory_file(self._array, check=True)
        if self._as_bytes:
            out = _row_bytes(out)
        if self._contiguous:
            # "clip" writes straight into out ("raise" would buffer); indices are in range already.
            self._rows.take(indices, 0, out, "clip")
        else:
            out[...] = self._rows[indices]


def _row_bytes(array: Array) -> Array:
    """Return an array as its bytes: (rows, bytes of a row)."""
    return array.reshape(len(array), math.prod(array.shape[1:])).view(np.uint8)


def _carried(tensor: torch.Tensor) -> Array:
    if tensor.dtype not in NUMPY_DTYPES:
        tensor = tensor.view(TORCH_DTYPES[CARRIERS[tensor.itemsize]])
    array: Array = tensor.detach().numpy()
    return array
