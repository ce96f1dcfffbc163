"""What the collations of sequences share: finding the sequences in a sample, and joining them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from headrace.collate.stack import default_collate
from headrace.errors import CollateError, MissingKeyError, NotCollatableError, ShapeMismatchError
from headrace.memory import alloc
from headrace.tree import TORCH_DTYPES, is_namedtuple

Collate: TypeAlias = Callable[[Sequence[Any]], Any]
Join: TypeAlias = Callable[[list[torch.Tensor]], Any]

_NUMBERS = (int, float, np.number, np.bool_)


def is_sequence(sample: object) -> bool:
    """Say whether a part of a sample is a sequence: it has steps along its first dimension.

    Tensors and numeric arrays of one dimension or more, and lists of numbers.
    """
    if isinstance(sample, torch.Tensor):
        return sample.is_nested or sample.ndim > 0
    if isinstance(sample, np.ndarray):
        return sample.ndim > 0 and sample.dtype in TORCH_DTYPES
    return isinstance(sample, list) and all(isinstance(x, _NUMBERS) for x in sample)


def collate_sequences(batch: Sequence[Any], join: Join) -> Any:
    """Collate samples: sequences with `join`, everything else by default.

    Args:
        batch: samples of one structure: sequences, or dicts, tuples and lists with sequences.
        join: what makes a batch of a list of tensors of shapes (length, ...), whose types and
            trailing sizes are the same.
    """
    first = batch[0]
    if is_sequence(first):
        return join(as_tensors(batch))
    if isinstance(first, Mapping):
        for position, sample in enumerate(batch):
            if not isinstance(sample, Mapping):
                raise _other_kind(first, sample, position)
            if sample.keys() != first.keys():
                raise _other_keys(first, sample, position)
        return {key: at(key, [s[key] for s in batch], join) for key in first}
    if isinstance(first, (tuple, list)):
        for position, sample in enumerate(batch):
            if not isinstance(sample, (tuple, list)):
                raise _other_kind(first, sample, position)
            if len(sample) != len(first):
                raise ShapeMismatchError(
                    f"sample 0 of the batch has {len(first)} entries and sample {position} has "
                    f"{len(sample)}",
                    "Return as many for every index.",
                    (0, position),
                )
        keys = first._fields if is_namedtuple(first) else range(len(first))  # type: ignore[union-attr]
        columns = zip(*batch, strict=True)
        parts = [at(key, column, join) for key, column in zip(keys, columns, strict=True)]
        return type(first)(*parts) if is_namedtuple(first) else parts
    return default_collate(batch)


def at(key: Hashable, samples: Sequence[Any], join: Join) -> Any:
    """Collate one column, and put its key at the front of the path of what fails."""
    try:
        return collate_sequences(samples, join)
    except CollateError as error:
        error.path = (key, *error.path)
        raise


def as_tensors(batch: Sequence[Any]) -> list[torch.Tensor]:
    """Return sequences as dense tensors of shapes (length, ...), alike but for their length.

    Raises:
        NotCollatableError: one is no sequence, sparse, or of another type of elements.
        ShapeMismatchError: trailing sizes differ.
    """
    if _alike(batch):
        return list(batch)
    for position, sample in enumerate(batch):
        if not is_sequence(sample):
            raise _other_kind(batch[0], sample, position)
    tensors = [_as_tensor(sample) for sample in batch]
    dtypes = {t.dtype for t, s in zip(tensors, batch, strict=True) if not isinstance(s, list) or s}
    if len(dtypes) == 1:  # an empty list has no type of its own
        (dtype,) = dtypes
        tensors = [t if t.dtype == dtype else t.to(dtype) for t in tensors]
    first = tensors[0]
    for position, tensor in enumerate(tensors):
        if tensor.layout is not torch.strided or tensor.is_nested:
            raise NotCollatableError(
                f"sample {position} of the batch is a {tensor.layout} tensor",
                "Return dense sequences of shape (length, ...): x.to_dense().",
                (position,),
            )
        if tensor.shape[1:] != first.shape[1:]:
            raise ShapeMismatchError(
                f"sequences may differ in their first size only, but the samples 0 and {position} "
                f"of the batch have shapes {tuple(first.shape)} and {tuple(tensor.shape)}",
                "Return shapes (length, ...) whose other sizes are the same: x.transpose(...).",
                (0, position),
            )
        if tensor.dtype != first.dtype:
            raise NotCollatableError(
                f"the samples 0 and {position} of the batch have types {first.dtype} and "
                f"{tensor.dtype}",
                f"Return one type for every index: x.to({first.dtype}).",
                (0, position),
            )
    return tensors


def _alike(batch: Sequence[Any]) -> bool:
    """Whether these are dense tensors that differ in nothing but their first size."""
    if set(map(type, batch)) != {torch.Tensor}:
        return False
    shapes = [tensor.shape for tensor in batch]
    return (
        0 not in map(len, shapes)
        and len({shape[1:] for shape in shapes}) == 1
        and len({tensor.dtype for tensor in batch}) == 1
        and {tensor.layout for tensor in batch} == {torch.strided}
        and not any(tensor.is_nested for tensor in batch)
    )


def is_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Say whether these may be written to leased memory: on the CPU, and without a gradient."""
    return all(
        type(t) is torch.Tensor and t.device.type == "cpu" and not t.requires_grad for t in tensors
    )


def join(pieces: list[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """Write pieces of shapes (steps, ...) one behind the other into a tensor of this shape.

    On leased memory where the pieces are plain CPU tensors; what has a gradient keeps it.
    """
    first = pieces[0]
    if not is_plain(pieces):
        return torch.cat(pieces).view(shape)
    out = alloc(shape, first.dtype)
    torch.cat(pieces, out=out.view(-1, *first.shape[1:]) if out.ndim > first.ndim else out)
    return out


def _as_tensor(sample: Any) -> torch.Tensor:
    if isinstance(sample, torch.Tensor):
        return sample
    if isinstance(sample, list):
        return torch.tensor(sample)
    if not sample.flags.writeable or any(step < 0 for step in sample.strides):
        sample = np.array(sample)  # torch takes neither without a warning, or at all
    return torch.from_numpy(sample)


def _other_kind(first: object, sample: object, position: int) -> NotCollatableError:
    return NotCollatableError(
        f"sample 0 of the batch is a {_kind(first)} and sample {position} a {_kind(sample)}",
        "Return the same structure for every index.",
        (0, position),
    )


def _kind(sample: object) -> str:
    shape = getattr(sample, "shape", None)
    return type(sample).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")


def _other_keys(
    first: Mapping[Any, Any], sample: Mapping[Any, Any], position: int
) -> MissingKeyError:
    missing = [key for key in first if key not in sample]
    extra = [key for key in sample if key not in first]
    key = (missing or extra)[0]
    owner, other = (0, position) if missing else (position, 0)
    return MissingKeyError(
        f"the key {key!r} is in sample {owner} of the batch, but not in sample {other}",
        f"Return every key for every index: sample.setdefault({key!r}, ...).",
        (other,),
    )
