"""Sequences brought to one length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from headrace.collate.sequences import Collate, collate_sequences, is_plain, join
from headrace.errors import NotCollatableError
from headrace.memory import alloc
from headrace.tree import NUMPY_DTYPES

Side = Literal["right", "left"]

# Sequences with fewer bytes than this on average are written together; above, one by one is faster.
SHORT_BYTES = 4096


class Padded(NamedTuple):
    """Sequences padded to one length: values (batch, time, ...) and int64 lengths (batch,)."""

    values: torch.Tensor
    lengths: torch.Tensor


class Masked(NamedTuple):
    """Sequences padded to one length, with a mask (batch, time) that is True where they are."""

    values: torch.Tensor
    mask: torch.Tensor


class PaddedMasked(NamedTuple):
    """Sequences padded to one length: values, lengths and mask as in `Padded` and `Masked`."""

    values: torch.Tensor
    lengths: torch.Tensor
    mask: torch.Tensor


def pad_collate(
    padding_value: complex = 0,
    side: Side = "right",
    multiple_of: int | None = None,
    lengths: bool = True,
    mask: bool = False,
) -> Collate:
    """Make a collate function that pads sequences to the longest of the batch.

    Tensors and arrays of shape (length, ...) and lists of numbers are padded; in dicts, tuples and
    lists each of them for itself. Numbers, strings and tensors without dimensions are collated
    by default. For data of which only some parts are sequences, see `collate_by_key`.

    Args:
        padding_value: what stands behind the end of a sequence.
        side: "right" pads behind the end, "left" before the beginning.
        multiple_of: round the padded length up to a multiple of this.
        lengths: return the lengths too.
        mask: return a mask too: bool of shape (batch, time), True where the sequence is.

    Returns:
        A function of a list of samples. It returns, for each sequence, `Padded` (values of shape
        (batch, time, ...), lengths), `Masked` (values, mask), `PaddedMasked` (all three), or just
        the values.

    Raises:
        TypeError, ValueError: an option that cannot be. When called: `ShapeMismatchError` where
            other sizes than the first differ, `NotCollatableError` where types do, or the padding
            value does not fit the type.
    """
    if not isinstance(padding_value, (int, float, complex)):
        raise TypeError(
            f"padding_value must be a number, got {type(padding_value).__name__}. pad_collate "
            f"makes a collate function: write DataLoader(..., collate_fn=pad_collate())."
        )
    if side not in ("right", "left"):
        raise ValueError(f'side must be "right" or "left", got {side!r}. Write side="right".')
    if multiple_of is not None and (not isinstance(multiple_of, int) or multiple_of < 1):
        raise ValueError(
            f"multiple_of must be 1 or more, got {multiple_of!r}. Write multiple_of=8."
        )
    return _PadCollate(padding_value, side, multiple_of, bool(lengths), bool(mask))


@dataclass(frozen=True)
class _PadCollate:
    padding_value: complex
    side: Side
    multiple_of: int | None
    lengths: bool
    mask: bool

    def __call__(self, batch: Sequence[Any]) -> Any:
        return collate_sequences(batch, self._pad)

    def _pad(self, tensors: list[torch.Tensor]) -> Any:
        lengths = [len(t) for t in tensors]
        time = max(lengths)
        if self.multiple_of is not None:
            time = -(-time // self.multiple_of) * self.multiple_of
        values = self._values(tensors, lengths, time)
        if not (self.lengths or self.mask):
            return values
        sizes = torch.tensor(lengths, dtype=torch.int64)
        if not self.mask:
            return Padded(values, sizes)
        mask = self._mask(sizes, time)
        return PaddedMasked(values, sizes, mask) if self.lengths else Masked(values, mask)

    def _values(self, tensors: list[torch.Tensor], lengths: list[int], time: int) -> torch.Tensor:
        first = tensors[0]
        check_padding(self.padding_value, first.dtype)
        shape = (len(tensors), time, *first.shape[1:])
        if is_plain(tensors) and sum(t.nbytes for t in tensors) < SHORT_BYTES * len(tensors):
            return self._scattered(tensors, lengths, shape)
        # One call writes sequences and padding where they belong: nothing is written twice.
        missing = (time - min(lengths), *first.shape[1:])
        fill = first.new_full(missing, self.padding_value, requires_grad=False)
        pieces = []
        for tensor, length in zip(tensors, lengths, strict=True):
            padding = fill[: time - length]
            pieces += [tensor, padding] if self.side == "right" else [padding, tensor]
        return join(pieces, shape)

    def _scattered(
        self, tensors: list[torch.Tensor], lengths: list[int], shape: tuple[int, ...]
    ) -> torch.Tensor:
        """Write all steps with one call: for short sequences a call for each costs more."""
        values = alloc(shape, tensors[0].dtype).fill_(self.padding_value)
        steps = np.arange(shape[1])
        sizes = np.array(lengths)[:, None]
        places = steps < sizes if self.side == "right" else steps >= shape[1] - sizes
        _as_array(values)[places] = _as_array(torch.cat(tensors))
        return values

    def _mask(self, sizes: torch.Tensor, time: int) -> torch.Tensor:
        mask = alloc((len(sizes), time), torch.bool)
        steps = torch.arange(time)
        if self.side == "right":
            return torch.lt(steps, sizes[:, None], out=mask)
        return torch.ge(steps, time - sizes[:, None], out=mask)


def _as_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return a tensor's memory as an array, of integers where NumPy has no such type."""
    if tensor.dtype not in NUMPY_DTYPES:
        tensor = tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.itemsize])
    array: npt.NDArray[Any] = tensor.numpy()
    return array


@cache
def check_padding(value: Any, dtype: torch.dtype) -> None:
    """Check that a type can hold the padding value.

    Raises:
        NotCollatableError: it cannot.
    """
    try:
        held = torch.full((), value, dtype=dtype).item()
    except (RuntimeError, TypeError, ValueError, OverflowError):
        held = None
    if held is not None and (dtype.is_complex or held == value):
        return
    if held is not None and dtype.is_floating_point and _close(held, value):
        return
    raise NotCollatableError(
        f"padding_value={value!r} cannot be held by {dtype}",
        "Give one that can, or return sequences of a type that can: x.to(torch.int64).",
        (0,),
    )


def _close(held: float, wanted: float) -> bool:
    """Whether a floating-point type holds a value, rounded but not as an infinity."""
    return math.isinf(held) == math.isinf(wanted) and math.isnan(held) == math.isnan(wanted)


def unpad(values: torch.Tensor, lengths: torch.Tensor, side: Side = "right") -> list[torch.Tensor]:
    """Return the sequences of a padded batch, as views of it.

    Args:
        values: shape (batch, time, ...).
        lengths: shape (batch,).
        side: where the padding is.
    """
    sizes, time = lengths.tolist(), values.shape[1]
    if side == "right":
        return [row[:n] for row, n in zip(values, sizes, strict=True)]
    return [row[time - n :] for row, n in zip(values, sizes, strict=True)]
