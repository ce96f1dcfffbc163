"""Results as columns: checked against the rows that went in, named, and put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headrace.errors import RowMismatchError
from headrace.tree import TORCH_DTYPES, is_namedtuple, leaves, map_leaves

SINGLE = "output"  # the name of a result that is one tensor


@dataclass(frozen=True)
class Column:
    """One tensor of a result: its name, its type as torch prints it, and the shape of a row."""

    name: str
    dtype: str  # "float32"
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} {list(self.shape)}"


def rows_of_result(result: Any, rows: int | None, function: str) -> int:
    """Return the rows of a function's result.

    Args:
        result: a tensor or array of shape (rows, ...), or nested dicts, tuples and lists of them.
        rows: how many it was given, None where nobody knows.
        function: its name, for the error.

    Raises:
        RowMismatchError: it has other rows than it was given, or something that has no rows.
    """
    found = leaves(result)
    for leaf in found:
        if not isinstance(leaf, (torch.Tensor, np.ndarray)) or leaf.ndim == 0:
            raise RowMismatchError(
                f"{function} returned {_describe(leaf)}, which has no rows. Return tensors of "
                f"shape (rows, ...), one row for each row that comes in."
            )
        rows = len(leaf) if rows is None else rows
        if len(leaf) != rows:
            raise RowMismatchError(
                f"{function} was given {rows} rows and returned {_describe(leaf)}. "
                f"Return one row for each row that comes in; for several, add a dimension."
            )
    if rows is None or not found:
        raise RowMismatchError(f"{function} returned nothing. Return tensors of shape (rows, ...).")
    return rows


def columns_of(result: Any) -> list[Column]:
    """Return what a result's tensors are called and what their rows look like, in order.

    A single tensor is ``output``; in containers a name is made of the keys on the way to it.
    """
    return [
        Column(".".join(path) or SINGLE, str(as_tensor(leaf).dtype)[6:], tuple(leaf.shape[1:]))
        for path, leaf in _named(result, ())
    ]


def _named(tree: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, Mapping):
        parts = [(str(key), value) for key, value in tree.items()]
    elif is_namedtuple(tree):
        parts = list(zip(tree._fields, tree, strict=True))
    elif isinstance(tree, (tuple, list)):
        parts = [(str(number), value) for number, value in enumerate(tree)]
    else:
        return [(path, tree)]
    return [found for key, value in parts for found in _named(value, (*path, key))]


def as_tensor(leaf: Any) -> torch.Tensor:
    """Return a tensor or array as a tensor on the CPU.

    Raises:
        TypeError: an array of a type that no tensor has.
    """
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().cpu()
    if leaf.dtype not in TORCH_DTYPES:
        raise TypeError(
            f"an array of type {leaf.dtype} was returned, which no tensor can hold. "
            f"Return numbers: result.astype(np.float32)."
        )
    return torch.from_numpy(np.ascontiguousarray(leaf))


def rebuild(like: Any, parts: Sequence[Any]) -> Any:
    """Return a tree of the structure of ``like`` with ``parts`` as its leaves, in order."""
    remaining = iter(parts)
    return map_leaves(lambda _: next(remaining), like)


def join_rows(parts: Sequence[Any]) -> Any:
    """Put trees of tensors and arrays of shape (rows, ...) together, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*map(leaves, parts), strict=True)
    return rebuild(parts[0], [_join(column) for column in columns])


def _join(column: Sequence[Any]) -> Any:
    if isinstance(column[0], torch.Tensor):
        return torch.cat(tuple(column))
    return np.concatenate(column)


def _describe(leaf: Any) -> str:
    if isinstance(leaf, (torch.Tensor, np.ndarray)):
        return f"shape {tuple(leaf.shape)}"
    return f"{type(leaf).__name__} {leaf!r:.40}"


def name_of(function: Any) -> str:
    """Return what to call a function in a message."""
    return getattr(function, "__name__", None) or type(function).__name__
