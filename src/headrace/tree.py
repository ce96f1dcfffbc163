"""Nested containers of leaves: one walk, with key paths for errors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
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


def convert(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Apply ``leaf`` to tensors and to objects that move themselves, wherever they are.

    Containers are those of torch's ``pin_memory``, and dataclasses; those in which nothing changes
    stay as they are.
    """
    if isinstance(value, torch.Tensor) or _moves_itself(value):
        return leaf(value)
    if isinstance(value, (str, bytes)):
        return value
    if isinstance(value, Mapping):
        return _mapping(value, leaf)
    if isinstance(value, Sequence):
        return _sequence(value, leaf)
    if is_dataclass(value) and not isinstance(value, type):
        clone = copy.copy(value)
        for member in fields(value):
            # past a frozen dataclass's own __setattr__: the clone is nobody's yet
            new = convert(getattr(value, member.name), leaf)
            object.__setattr__(clone, member.name, new)
        return clone
    return value


def _moves_itself(value: Any) -> bool:
    if not hasattr(value, "to"):
        return False
    return hasattr(value, "pin_memory") or not isinstance(value, (Mapping, Sequence))


def _mapping(value: Mapping[Any, Any], leaf: Callable[[Any], Any]) -> Any:
    parts = {key: convert(part, leaf) for key, part in value.items()}
    if all(part is value[key] for key, part in parts.items()):
        return value
    if isinstance(value, MutableMapping):
        with suppress(TypeError):
            clone = copy.copy(value)  # keeps what the type has besides its keys
            clone.update(parts)
            return clone
    try:
        return type(value)(parts)  # type: ignore[call-arg]
    except TypeError:
        return parts


def _sequence(value: Sequence[Any], leaf: Callable[[Any], Any]) -> Any:
    parts = [convert(part, leaf) for part in value]
    if all(new is old for new, old in zip(parts, value, strict=True)):
        return value
    if is_namedtuple(value):
        return type(value)(*parts)
    if isinstance(value, MutableSequence):
        with suppress(TypeError):
            clone = copy.copy(value)
            for place, part in enumerate(parts):
                clone[place] = part
            return clone
    try:
        return type(value)(parts)  # type: ignore[call-arg]
    except TypeError:
        return parts


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
