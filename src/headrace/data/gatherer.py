"""Columnar datasets: a whole batch with one gather per column, no Python per sample.

The protocol is one method. A dataset that can gather defines ``__gather__()``, which returns a
:class:`Gatherer`, or None to decline. Most datasets return :func:`columns`::

    class Points(torch.utils.data.Dataset):
        def __len__(self):
            return len(self.x)

        def __getitem__(self, index):
            return {"x": self.x[index], "label": self.y[index]}

        def __gather__(self):
            return headrace.columns({"x": self.x, "label": self.y})

The promise is that the default collation of ``[dataset[i] for i in indices]`` and the gather of
``indices`` are the same batch. A subclass that overrides ``__getitem__`` but not ``__gather__``
breaks that promise, so it is not asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch

from headrace.errors import SampleIndexError
from headrace.tree import NUMPY_DTYPES

IndexArray: TypeAlias = np.ndarray[Any, np.dtype[np.integer[Any]]]
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

CARRIERS: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
}
_BYTE = np.dtype(np.uint8)


@dataclass(frozen=True)
class Leaf:
    """One column of a batch: shape of a sample, type of its elements, as torch names it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def carrier(self) -> np.dtype[Any]:
        """The NumPy type that carries the elements: their own, or an integer of their size."""
        return NUMPY_DTYPES.get(self.dtype, CARRIERS.get(self.dtype.itemsize, _BYTE))

    @property
    def size_bytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * self.dtype.itemsize


@runtime_checkable
class Gatherer(Protocol):
    """Fills arrays with the samples at given indices.

    ``spec`` is the batch as nested dicts, lists and named tuples with a :class:`Leaf` in the place
    of each tensor. ``watched`` are the tensors that the samples are read from: the engine looks at
    their version counters, and gathers again what was gathered ahead of a change. None means that
    a change could not be seen; then nothing is gathered ahead.
    """

    spec: Any
    watched: Sequence[torch.Tensor] | None

    def __len__(self) -> int:
        """Return the number of samples."""

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        """Write samples ``indices`` (each in ``[0, len)``) to ``out``.

        ``out`` has one array of shape ``(len(indices), *leaf.shape)`` and type ``leaf.carrier`` for
        each leaf of ``spec``, in order. Arrays are C-contiguous.
        """


def in_range(indices: Any, length: int, what: str) -> IndexArray | None:
    """Return indices as an array in ``[0, length)``; None where they are not all integers.

    Negative ones count from the end, as in a list.

    Raises:
        SampleIndexError: one is outside ``[-length, length)``.
    """
    if isinstance(indices, torch.Tensor):
        indices = indices.numpy() if indices.device.type == "cpu" else None
    elif isinstance(indices, range):
        indices = np.arange(indices.start, indices.stop, indices.step, dtype=np.intp)
    elif not isinstance(indices, np.ndarray):
        indices = np.array(indices, np.intp) if _all_integers(indices) else None
    if indices is None or indices.ndim != 1 or indices.dtype.kind not in "iu":
        return None
    low, high = (int(indices.min()), int(indices.max())) if len(indices) else (0, -1)
    if low < -length or high >= length:
        wrong = high if high >= length else low
        raise SampleIndexError(
            f"index {wrong} is out of range for {what} with {length} samples. "
            f"Yield indices from 0 to {length - 1}."
        )
    if low < 0:
        indices = np.where(indices < 0, indices + length, indices)
    array: IndexArray = np.ascontiguousarray(indices, np.intp)
    return array


def _all_integers(indices: Any) -> bool:
    return all(kind is int or issubclass(kind, np.integer) for kind in set(map(type, indices)))
