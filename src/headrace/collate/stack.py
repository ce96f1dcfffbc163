"""The default collation: torch's result, written into leases, with errors that say where.

The rules are those of ``torch.utils.data.default_collate`` (2.13): tensors and arrays are stacked,
numbers become tensors, strings stay, mappings, sequences and named tuples are walked. Where a user
has changed ``default_collate_fn_map``, torch's own function is called.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Callable, Hashable, Mapping, MutableMapping, MutableSequence, Sequence
from numbers import Number
from operator import is_
from typing import Any

import numpy as np
import torch
from torch.utils.data import _utils
from torch.utils.data import default_collate as torch_default_collate

from headrace.errors import (
    CollateError,
    MissingKeyError,
    MixedKindsError,
    NotCollatableError,
    ShapeMismatchError,
)
from headrace.memory import alloc, is_made_in_place
from headrace.tree import TORCH_DTYPES, is_namedtuple

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
        return batch.collate()
    return _collate(batch)


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

    def collate(self) -> Any:
        """Return the batch; the samples that are there now count, if somebody changed the list."""
        if len(self) != len(self._samples) or not all(map(is_, self, self._samples)):
            return _collate(self)
        return [
            self._stacked[place] if place in self._stacked else _at(place, column)
            for place, column in enumerate(zip(*self, strict=True))
        ]


def is_default(collate: Callable[[Any], Any]) -> bool:
    """Say whether ``collate`` is the default collation, unchanged by the user."""
    known = collate is torch_default_collate or collate is default_collate
    return known and _torch_map == _torch_map_as_shipped


def _collate(batch: Sequence[Any]) -> Any:
    try:
        first = batch[0]
        kind = type(first)
        handler = _LEAVES.get(kind)
        if handler is not None:
            return handler(batch)
        if kind is tuple or kind is list:
            return _collate_sequence(batch, first)
        for base, handle in _LEAVES_BY_BASE:
            if isinstance(first, base):
                return handle(batch)
        if isinstance(first, Mapping):
            return _collate_mapping(batch, first)
        if is_namedtuple(first):
            return kind(*_collate_columns(batch, first, first._fields))
        if isinstance(first, Sequence):
            return _collate_sequence(batch, first)
    except CollateError:
        raise
    except (TypeError, RuntimeError) as error:
        _check_alike(batch, f"{error}: ")
        raise
    raise NotCollatableError(
        f"default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; "
        f"found {kind}",
        _remedy(first),
        (0,),
    )


def _check_alike(batch: Sequence[Any], said: str = "") -> None:
    """Raise for samples of different kinds."""
    for position, sample in enumerate(batch):
        if sample is None:
            problem = f"{said}None makes no batch"
            raise MixedKindsError(problem, _remedy(None), (position,)) from None
    first = batch[0]
    for position, sample in enumerate(batch):
        if not _is_alike(first, sample):
            raise MixedKindsError(
                f"{said}samples of the types {type(first).__name__} and {type(sample).__name__} "
                f"make no batch",
                "Return the same structure for every index.",
                (0, position),
            ) from None


def _is_alike(one: Any, other: Any) -> bool:
    """Say whether torch takes both for the same kind of thing."""
    if isinstance(one, type(other)) or isinstance(other, type(one)):
        return True
    return any(isinstance(one, k) and isinstance(other, k) for k in (Number, Mapping, Sequence))


def _remedy(sample: Any) -> str:
    """Return what to write where a sample, or a part of one, makes no batch."""
    if sample is None:
        return (
            "Where there is no sample, raise an exception in __getitem__ and write "
            "DataLoader(..., on_error='skip'), or filter the samples in a collate_fn=."
        )
    if type(sample).__module__.partition(".")[0] == "PIL":
        return (
            "End the transform with torchvision's v2.ToImage() or transforms.ToTensor(), or write "
            "ImageFolder(..., decode='tensor'). For a Hugging Face dataset, write "
            "TableDataset(dataset), whose images are tensors."
        )
    if type(sample).__module__ in ("datetime", "decimal", "_decimal", "_pydatetime"):
        return (
            "Return a number, such as value.timestamp() or float(value). For a Hugging Face "
            "dataset, write TableDataset(dataset), where dates and decimals are numbers."
        )
    return "Return one of those from the dataset, or give the loader a collate_fn=."


def _at(key: Hashable, samples: Sequence[Any]) -> Any:
    """Collate one column, and put its key at the front of the path of what fails."""
    try:
        return _collate(samples)
    except CollateError as error:
        error.path = (key, *error.path)
        raise


def _collate_mapping(batch: Sequence[Any], first: Mapping[Any, Any]) -> Any:
    # As many keys, and every key of the first: the same keys. (A defaultdict would invent them.)
    alike = len(set(map(type, batch))) == 1 and set(map(len, batch)) == {len(first)}
    if not alike or type(first) is not dict:
        alike = all(isinstance(s, Mapping) and s.keys() == first.keys() for s in batch)
    if not alike:
        raise _key_error(batch, first)
    try:
        samples = {key: [sample[key] for sample in batch] for key in first}
    except KeyError:
        raise _key_error(batch, first) from None
    columns = {key: _at(key, column) for key, column in samples.items()}
    if type(first) is dict:
        return columns
    try:
        if isinstance(first, MutableMapping):
            clone = copy.copy(first)
            clone.update(columns)
            return clone
        return type(first)(columns)  # type: ignore[call-arg]
    except TypeError:
        return columns


def _key_error(batch: Sequence[Any], first: Mapping[Any, Any]) -> CollateError:
    """Return what to raise for samples that do not all have the first one's keys."""
    _check_alike(batch)
    for position, sample in enumerate(batch):
        missing = [key for key in first if key not in sample]
        extra = [key for key in sample if key not in first]
        if not missing and not extra:
            continue
        key, owner, other = (missing[0], 0, position) if missing else (extra[0], position, 0)
        return MissingKeyError(
            f"the key {key!r} is in sample {owner} of the batch, but not in sample {other}",
            f"Return every key for every index, with a value that stands for nothing: "
            f"sample.setdefault({key!r}, ...).",
            (other,),
        )
    raise AssertionError("the samples' keys are alike")


def _collate_sequence(batch: Sequence[Any], first: Sequence[Any]) -> Any:
    columns = _collate_columns(batch, first, range(len(first)))
    if isinstance(first, tuple) or type(first) is list:
        return columns  # a tuple becomes a list, as in torch
    try:
        if isinstance(first, MutableSequence):
            clone = copy.copy(first)
            for place, column in enumerate(columns):
                clone[place] = column
            return clone
        return type(first)(columns)  # type: ignore[call-arg]
    except TypeError:
        return columns


def _collate_columns(
    batch: Sequence[Any], first: Sequence[Any], keys: Sequence[Hashable]
) -> list[Any]:
    try:
        columns = list(zip(*batch, strict=True))
    except ValueError:
        raise _widths_differ(batch, len(first)) from None
    return [_at(key, column) for key, column in zip(keys, columns, strict=True)]


def _widths_differ(batch: Sequence[Any], width: int) -> ShapeMismatchError:
    position, sample = next((n, s) for n, s in enumerate(batch) if len(s) != width)
    return ShapeMismatchError(
        f"each element in list of batch should be of equal size, but sample 0 has {width} "
        f"entries and sample {position} has {len(sample)}",
        "Return as many for every index, or give a collate_fn=.",
        (0, position),
    )


def _stack_tensors(batch: Sequence[Any]) -> torch.Tensor:
    first = batch[0]
    shape = first.shape
    if is_made_in_place(first.numel() * first.itemsize * len(batch)) and _are_plain(batch):
        try:
            return torch.stack(list(batch), 0, out=alloc((len(batch), *shape), first.dtype))
        except RuntimeError:  # shapes differ, or one requires a gradient: both are handled below
            pass
    if first.layout is not torch.strided or first.is_nested:
        kind = "nested" if first.is_nested else "sparse"
        raise RuntimeError(
            f"Batches of {kind} tensors are not currently supported by the default collate_fn; "
            f"please provide a custom collate_fn to handle them appropriately."
        )
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
        first.layout is torch.strided
        and first.device.type == "cpu"
        and not first.is_nested
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


_LEAVES: dict[type, Callable[[Sequence[Any]], Any]] = {
    torch.Tensor: _stack_tensors,
    np.ndarray: _stack_arrays,
    float: _floats,
    int: _ints,
    str: _unchanged,
    bytes: _unchanged,
}
# The order in which torch asks isinstance: np.float64 is a float too, and is a NumPy number first.
_LEAVES_BY_BASE: tuple[tuple[Any, Callable[[Sequence[Any]], Any]], ...] = (
    (torch.Tensor, _stack_tensors),
    (np.ndarray, _stack_arrays),
    ((np.bool_, np.number, np.object_), _as_tensor),
    (float, _floats),
    (int, torch.tensor),  # bool is an int too
    (str, _unchanged),
    (bytes, _unchanged),
)
