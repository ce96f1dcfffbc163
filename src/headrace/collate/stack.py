"""The default collation: torch's result, written into leases, with errors that say where.

The rules are those of ``torch.utils.data.default_collate`` (2.13): tensors and arrays are stacked,
numbers become tensors, strings stay. Where a user has changed ``default_collate_fn_map``, torch's
own function is called.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import numpy as np
import torch
from torch.utils.data import _utils
from torch.utils.data import default_collate as torch_default_collate

from headrace.collate.walk import Handler, Leaves, collate_at, collate_leaves
from headrace.errors import NotCollatableError, ShapeMismatchError
from headrace.memory import alloc, is_made_in_place
from headrace.tree import TORCH_DTYPES

_torch_map = _utils.collate.default_collate_fn_map
_torch_map_as_shipped = dict(_torch_map)


def default_collate(batch: Sequence[Any]) -> Any:
    """Stack a list of samples into a batch with an outer dimension, as torch's function does.

    Args:
        batch: samples of one structure: tensors, NumPy arrays, numbers, strings, and mappings,
            sequences and named tuples of these.

    Returns:
        The structure of a sample, with tensors of shape ``(batch, ...)`` for its leaves.

    Raises:
        ShapeMismatchError: two samples have different shapes or lengths.
        MissingKeyError: a key is in some samples only.
        NotCollatableError: a leaf is of a type that makes no batch.
    """
    if _torch_map != _torch_map_as_shipped:
        return torch_default_collate(batch)  # type: ignore[arg-type]
    if type(batch) is Prestacked:
        return batch.collate(_TENSORS)
    return collate_leaves(batch, _TENSORS)


class Prestacked(list[tuple[Any, ...]]):
    """Samples of which some columns lie stacked in memory already, so that nothing is copied.

    A dataset's ``__getitems__`` may return it: tuples, and for some of their places the batch that
    the default collation would make, on memory from :func:`headrace.alloc`, with the samples as
    its rows. To everybody else it is a list of samples.
    """

    def __init__(self, samples: list[tuple[Any, ...]], stacked: dict[int, torch.Tensor]) -> None:
        super().__init__(samples)
        self._samples = tuple(samples)
        self._stacked = stacked

    def collate(self, leaves: Leaves, convert: Callable[[torch.Tensor], Any] | None = None) -> Any:
        """Return the batch, its other columns made by ``leaves``; ``convert`` is for the stacked.

        The samples that are there now count, if somebody changed the list.
        """
        if len(self) != len(self._samples) or not all(map(is_, self, self._samples)):
            return collate_leaves(self, leaves)
        stacked = self._stacked
        if convert is not None:
            stacked = {place: convert(column) for place, column in stacked.items()}
        return [
            stacked[place] if place in stacked else collate_at(place, column, leaves)
            for place, column in enumerate(zip(*self, strict=True))
        ]


def is_default(collate: Callable[[Any], Any]) -> bool:
    """Say whether ``collate`` is the default collation, unchanged by the user."""
    known = collate is torch_default_collate or collate is default_collate
    return known and _torch_map == _torch_map_as_shipped


def _stack_tensors(batch: Sequence[Any]) -> torch.Tensor:
    first = batch[0]
    if first.is_nested or first.layout is not torch.strided:
        kind = "nested" if first.is_nested else "sparse"
        raise RuntimeError(
            f"Batches of {kind} tensors are not currently supported by the default collate_fn; "
            f"please provide a custom collate_fn to handle them appropriately. Write "
            f"collate_fn=list for a list of them"
            + (
                ", or let the dataset return plain tensors of (length, ...) and write "
                "collate_fn=headrace.jagged_collate for one nested tensor a batch."
                if first.is_nested
                else ", or let the dataset return x.to_dense()."
            )
        )
    shape = first.shape
    if is_made_in_place(first.numel() * first.itemsize * len(batch)) and _are_plain(batch):
        try:
            return torch.stack(list(batch), 0, out=alloc((len(batch), *shape), first.dtype))
        except RuntimeError:  # shapes differ, or one requires a gradient: both are handled below
            pass
    try:
        return torch.stack(list(batch), 0)
    except RuntimeError:
        for position, tensor in enumerate(batch):
            if isinstance(tensor, torch.Tensor) and tensor.shape != shape:
                raise _shapes_differ(batch, position) from None
        raise


def _are_plain(batch: Sequence[Any]) -> bool:
    """Say whether the batch has the first sample's type, so that it can be made in place."""
    first = batch[0]
    return (
        first.device.type == "cpu"
        and first.is_contiguous()  # torch.stack keeps channels_last and the like
        and set(map(type, batch)) == {torch.Tensor}
        and len({tensor.dtype for tensor in batch}) == 1
    )


def _stack_arrays(batch: Sequence[Any]) -> torch.Tensor:
    first = batch[0]
    dtype = TORCH_DTYPES.get(first.dtype)
    if dtype is None and first.dtype.kind in "SUOMm":
        raise NotCollatableError(
            f"default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; "
            f"found {first.dtype}",
            "Give the array a numeric type: x.astype(np.float32).",
            (0,),
        )
    alike = dtype is not None and all(
        type(row) in _ARRAYS and row.dtype == first.dtype for row in batch
    )
    # torch.as_tensor, which torch's collation calls, goes to the default device.
    if not alike or not _on_cpu():
        return _stack_tensors([torch.as_tensor(row) for row in batch])
    shape = first.shape
    for position, row in enumerate(batch):
        if row.shape != shape:
            raise _shapes_differ(batch, position)
    assert dtype is not None
    out = alloc((len(batch), *shape), dtype)
    rows = out.numpy()
    for position, row in enumerate(batch):
        rows[position] = row
    return out


_ARRAYS = (np.ndarray, np.memmap)  # others may make something of their own of a row


def _shapes_differ(batch: Sequence[Any], position: int) -> ShapeMismatchError:
    one, other = tuple(batch[0].shape), tuple(batch[position].shape)
    todo = (
        "Bring the samples to one shape (crop, resize), or pad them: "
        "DataLoader(..., collate_fn=headrace.pad_collate())."
    )
    if len(one) == len(other) == 3 and one[0] == other[0] and one[1:] != other[1:]:
        todo = (
            "Bring images to one size: ImageFolder(..., size=(224, 224)), or a transform that "
            "resizes or crops them."
        )
    return ShapeMismatchError(
        f"stack expects each tensor to be equal size, but got {list(one)} at entry 0 and "
        f"{list(other)} at entry {position}",
        todo,
        (0, position),
    )


def _on_cpu() -> bool:
    """Say whether torch's constructors make CPU tensors, quicker than its public call does."""
    return not torch._C._len_torch_function_stack() or torch.get_default_device().type == "cpu"


def _as_tensor(batch: Sequence[Any]) -> torch.Tensor:
    return torch.as_tensor(batch)


def _floats(batch: Sequence[Any]) -> torch.Tensor:
    if not _on_cpu():
        return torch.tensor(batch, dtype=torch.float64)
    return torch.frombuffer(array("d", batch), dtype=torch.float64)  # a third of tensor()'s time


def _ints(batch: Sequence[Any]) -> torch.Tensor:
    try:
        numbers = array("q", batch)
    except (TypeError, OverflowError):  # not all integers, or large ones: torch decides
        return torch.tensor(batch)
    if not _on_cpu():
        return torch.tensor(batch)
    return torch.frombuffer(numbers, dtype=torch.int64)


def _unchanged(batch: Sequence[Any]) -> Sequence[Any]:
    return batch


_BY_TYPE: dict[type, Handler] = {
    torch.Tensor: _stack_tensors,
    np.ndarray: _stack_arrays,
    float: _floats,
    int: _ints,
    str: _unchanged,
    bytes: _unchanged,
}
# The order in which torch asks isinstance: np.float64 is a float too, and is a NumPy number first.
_BY_BASE: tuple[tuple[Any, Handler], ...] = (
    (torch.Tensor, _stack_tensors),
    (np.ndarray, _stack_arrays),
    ((np.bool_, np.number, np.object_), _as_tensor),
    (float, _floats),
    (int, torch.tensor),  # bool is an int too
    (str, _unchanged),
    (bytes, _unchanged),
)
_TENSORS = Leaves("default_collate", _BY_TYPE, _BY_BASE)
