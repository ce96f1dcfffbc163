"""Batches of NumPy arrays, for loops that are written for JAX, NumPy or anything but torch.

What :func:`headrace.default_collate` makes, with arrays in the place of tensors. They are written
into leases where it is a loader that asks, and no tensor stands in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from headrace.collate.stack import Prestacked
from headrace.collate.walk import Handler, Leaves, beyond_64_bits, collate_leaves
from headrace.errors import NotCollatableError, ShapeMismatchError
from headrace.memory import alloc_array
from headrace.tree import NUMPY_DTYPES

_Array = np.ndarray[Any, np.dtype[Any]]


def numpy_collate(batch: Sequence[Any]) -> Any:
    """Stack a list of samples into a batch of NumPy arrays.

    Structures and types are those of :func:`headrace.default_collate`: ints become int64, floats
    float64, arrays and tensors keep their type, strings stay a list. Besides, arrays of all NumPy
    types are stacked (dates, strings), and arrays of other libraries that NumPy can read (JAX's).

    Args:
        batch: samples of one structure: arrays, tensors, numbers, strings, and mappings, sequences
            and named tuples of these.

    Returns:
        The structure of a sample, with arrays of shape ``(batch, ...)`` for its leaves. They may be
        kept for as long as one likes, and handed to ``jax.device_put`` or ``jax.dlpack``.

    Raises:
        ShapeMismatchError: two samples have different shapes or lengths.
        MissingKeyError: a key is in some samples only.
        NotCollatableError: a leaf is of a type that makes no batch, or that NumPy does not have.
    """
    if type(batch) is Prestacked:
        return batch.collate(_ARRAYS, torch.Tensor.numpy)
    return collate_leaves(batch, _ARRAYS)


@runtime_checkable
class _ArrayLike(Protocol):
    """What NumPy can make an array of, without a guess at what it means."""

    dtype: Any
    shape: Any

    def __array__(self) -> _Array:
        """Return it as an array."""


def _stack(batch: Sequence[Any]) -> _Array:
    """Copy arrays into one, of the first one's type or the one that NumPy has for all."""
    rows = [row if type(row) is np.ndarray else _as_array(row, n) for n, row in enumerate(batch)]
    first = rows[0]
    for position, row in enumerate(rows):
        if row.shape != first.shape:
            raise _shapes_differ(first, row, position)
    dtype = first.dtype
    if any(row.dtype != dtype for row in rows):
        dtype = np.result_type(*rows)
    out = alloc_array((len(rows), *first.shape), dtype)
    for position, row in enumerate(rows):
        out[position] = row
    return out


def _as_array(row: Any, place: int) -> _Array:
    if isinstance(row, np.ma.MaskedArray) and np.ma.is_masked(row):
        raise NotCollatableError(
            "numpy_collate: a masked array would lose its mask",
            "Return x.filled(value) from the dataset, and the mask beside it.",
            (place,),
        )
    if not isinstance(row, torch.Tensor):
        if not isinstance(row, (np.ndarray, np.generic, Number, _ArrayLike)):
            raise TypeError(f"{type(row).__name__} is no array")
        return np.asarray(row)
    if row.layout is not torch.strided or row.is_nested or row.dtype not in NUMPY_DTYPES:
        what = row.dtype if row.dtype not in NUMPY_DTYPES else row.layout
        raise NotCollatableError(
            f"numpy_collate: NumPy has nothing for a tensor of {what}",
            "Return x.float() or x.to_dense() from the dataset.",
            (place,),
        )
    return row.detach().cpu().numpy()


def _numbers(batch: Sequence[Any]) -> _Array:
    try:
        array = np.array(batch)
    except ValueError as error:  # arrays or lists between numbers
        raise TypeError(str(error)) from None
    kind = array.dtype.kind
    if kind not in "biufcm" and not all(isinstance(number, Number) for number in batch):
        raise TypeError("not all of them are numbers")
    # NumPy makes floats, and loses digits, of integers that are too large for int64.
    if kind not in "biufcm" or (kind == "f" and all(isinstance(n, int) for n in batch)):
        raise NotCollatableError(
            "numpy_collate: these numbers have no common NumPy type",
            "Return numbers of one type that fits 64 bits: float(x), int(x).",
            (beyond_64_bits(batch) or 0,),
        )
    return array


def _unchanged(batch: Sequence[Any]) -> Sequence[Any]:
    return batch


def _shapes_differ(first: _Array, row: _Array, position: int) -> ShapeMismatchError:
    return ShapeMismatchError(
        f"stack expects each array to be equal size, but got {list(first.shape)} at entry 0 and "
        f"{list(row.shape)} at entry {position}",
        "Bring the samples to one shape: crop, resize, or np.pad(x, ...).",
        (0, position),
    )


_BY_TYPE: dict[type, Handler] = {
    np.ndarray: _stack,
    torch.Tensor: _stack,
    float: _numbers,
    int: _numbers,
    bool: _numbers,
    str: _unchanged,
    bytes: _unchanged,
}
_BY_BASE: tuple[tuple[Any, Handler], ...] = (
    ((np.bool_, np.number), _numbers),
    ((float, int), _numbers),
    ((str, bytes), _unchanged),
    # np.generic for dates; the others are arrays of some kind.
    ((torch.Tensor, np.ndarray, np.generic, _ArrayLike), _stack),
)
_ARRAYS = Leaves("numpy_collate", _BY_TYPE, _BY_BASE)
