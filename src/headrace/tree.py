"""Nested containers of leaves: one walk, with key paths for errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.from_numpy(np.empty(0, name)).dtype: np.dtype(name)
    for name in (
        *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}
TORCH_DTYPES: dict[np.dtype[Any], torch.dtype] = {n: t for t, n in NUMPY_DTYPES.items()}


def is_namedtuple(value: object) -> bool:
    """Say whether ``value`` is an instance of a named tuple class."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def map_leaves(
    function: Callable[[Any], Any], tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """Apply ``function`` to each leaf of nested tuples, lists and dicts, keeping their types.

    ``is_leaf`` says which containers count as leaves too.
    """
    if is_leaf is not None and is_leaf(tree):
        return function(tree)
    if isinstance(tree, Mapping):
        return type(tree)({k: map_leaves(function, v, is_leaf) for k, v in tree.items()})  # type: ignore[call-arg]
    if is_namedtuple(tree):
        return type(tree)(*(map_leaves(function, v, is_leaf) for v in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_leaves(function, v, is_leaf) for v in tree)
    return function(tree)


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested tuples, lists and dicts, in order."""
    found: list[Any] = []
    map_leaves(found.append, tree)
    return found


def size_bytes(batch: Any) -> int:
    """Return the bytes of the tensors and arrays in a batch; other leaves count as nothing."""
    kind = type(batch)
    if kind is list or kind is tuple:
        # Lists of texts are long, and the checks below are slow for each.
        return sum([size_bytes(part) for part in batch if type(part) is not str])
    if isinstance(batch, (torch.Tensor, np.ndarray)):
        try:
            return batch.nbytes
        except RuntimeError:  # sparse and nested layouts have no storage to measure
            return 0
    if isinstance(batch, Mapping):
        return sum(map(size_bytes, batch.values()))
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        return sum(map(size_bytes, batch))
    return 0
