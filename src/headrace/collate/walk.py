"""The walk of a collation: samples to columns, with the key path of what makes no batch.

The rules are those of ``torch.utils.data.default_collate``: mappings, sequences and named tuples
are walked, and what is done with a column of leaves is the collation's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, MutableMapping, MutableSequence, Sequence
from numbers import Number
from typing import Any, NamedTuple

from headrace.errors import (
    CollateError,
    HugeIntegerError,
    MissingKeyError,
    MixedKindsError,
    NotCollatableError,
    ShapeMismatchError,
)
from headrace.tree import is_namedtuple

Handler = Callable[[Sequence[Any]], Any]


class Leaves(NamedTuple):
    """What a collation does with columns of leaves, by the type of the first sample's.

    ``by_type`` is asked first, then ``by_base``, in order; ``name`` stands in errors.
    """

    name: str
    by_type: Mapping[type, Handler]
    by_base: tuple[tuple[Any, Handler], ...]


def collate_leaves(batch: Sequence[Any], leaves: Leaves) -> Any:
    """Collate samples of one structure, each column of leaves by its handler."""
    try:
        first = batch[0]
        kind = type(first)
        handler = leaves.by_type.get(kind)
        if handler is not None:
            return handler(batch)
        if kind is tuple or kind is list:
            return _collate_sequence(batch, first, leaves)
        for base, handle in leaves.by_base:
            if isinstance(first, base):
                return handle(batch)
        if isinstance(first, Mapping):
            return _collate_mapping(batch, first, leaves)
        if is_namedtuple(first):
            return kind(*_collate_columns(batch, first, first._fields, leaves))
        if isinstance(first, Sequence):
            return _collate_sequence(batch, first, leaves)
    except CollateError:
        raise
    except IndexError as error:
        if len(batch):
            raise
        raise IndexError(
            f"{error}: an empty list of samples makes no batch. Yield no empty lists from "
            f"batch_sampler=, and return none from a collate_fn's filter."
        ) from None
    except (TypeError, RuntimeError, ValueError, OverflowError) as error:
        _check_alike(batch, f"{error}: ")
        _check_fits(batch, leaves)
        raise
    raise NotCollatableError(
        f"{leaves.name}: batch must contain tensors, numpy arrays, numbers, dicts or lists; "
        f"found {kind}",
        _remedy(first),
        (0,),
    )


def beyond_64_bits(batch: Sequence[Any]) -> int | None:
    """Return the position of the first integer that int64 does not hold."""
    for position, number in enumerate(batch):
        if isinstance(number, int) and not -(2**63) <= number < 2**63:
            return position
    return None


def _check_fits(batch: Sequence[Any], leaves: Leaves) -> None:
    position = beyond_64_bits(batch)
    if position is not None:
        raise HugeIntegerError(
            f"{leaves.name}: an integer is not from -2**63 to 2**63 - 1, as int64 is",
            "Return float(x) for every sample, or str(x) to keep all digits.",
            (position,),
        ) from None


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


def collate_at(key: Hashable, samples: Sequence[Any], leaves: Leaves) -> Any:
    """Collate one column, and put its key at the front of the path of what fails."""
    try:
        return collate_leaves(samples, leaves)
    except CollateError as error:
        error.path = (key, *error.path)
        raise


def _collate_mapping(batch: Sequence[Any], first: Mapping[Any, Any], leaves: Leaves) -> Any:
    if not _have_the_keys_of(first, batch):
        raise _key_error(batch, first)
    columns = {}
    for key in first:
        try:
            samples = [sample[key] for sample in batch]
        except KeyError:
            raise _key_error(batch, first) from None
        columns[key] = collate_at(key, samples, leaves)
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


def _have_the_keys_of(first: Mapping[Any, Any], batch: Sequence[Any]) -> bool:
    """Say whether all samples have as many keys; where they are not plain dicts, the same ones.

    As many, and every key of the first: the same. (A defaultdict would invent them.)
    """
    width = len(first)
    for sample in batch:
        if type(sample) is not dict:
            return all(isinstance(s, Mapping) and s.keys() == first.keys() for s in batch)
        if len(sample) != width:
            return False
    return True


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


def _collate_sequence(batch: Sequence[Any], first: Sequence[Any], leaves: Leaves) -> Any:
    columns = _collate_columns(batch, first, range(len(first)), leaves)
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
    batch: Sequence[Any], first: Sequence[Any], keys: Sequence[Hashable], leaves: Leaves
) -> list[Any]:
    try:
        columns = list(zip(*batch, strict=True))
    except ValueError:
        raise _widths_differ(batch, len(first)) from None
    return [collate_at(key, column, leaves) for key, column in zip(keys, columns, strict=True)]


def _widths_differ(batch: Sequence[Any], width: int) -> ShapeMismatchError:
    position, sample = next((n, s) for n, s in enumerate(batch) if len(s) != width)
    return ShapeMismatchError(
        f"each element in list of batch should be of equal size, but sample 0 has {width} "
        f"entries and sample {position} has {len(sample)}",
        "Return as many for every index, or give a collate_fn=.",
        (0, position),
    )
