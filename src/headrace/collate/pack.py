"""Several sequences in one row, with what attention needs to keep them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from headrace.collate.sequences import collate_sequences, join
from headrace.memory import alloc


class Packed(NamedTuple):
    """Sequences one behind the other.

    `values` has shape (total, ...); `position_ids`, int64 of shape (total,), count from 0 within
    each sequence; `cu_seqlens`, int32 of shape (sequences + 1,), are the places where sequences
    begin and end, as variable-length attention takes them; `max_seqlen` is the longest length.
    """

    values: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int

    def unpack(self) -> list[torch.Tensor]:
        """Return the sequences, as views."""
        return list(torch.split(self.values, self.cu_seqlens.diff().tolist()))


def pack_collate(batch: Sequence[Any]) -> Any:
    """Collate sequences into one row: `Packed`, for variable-length attention.

    Tensors and arrays of shape (length, ...) and lists of numbers are packed; in dicts, tuples and
    lists each of them for itself. Everything else is collated by default. Use it with
    `PackedBatchSampler`, which chooses sequences that fill a row.

    `cu_seqlens` and `max_seqlen` are what `flash_attn_varlen_func` and torch's `varlen_attn` take;
    without them, attend where `sequence[i] == sequence[j]` with
    `sequence = torch.searchsorted(cu_seqlens, torch.arange(total), right=True)`.

    Args:
        batch: samples of one structure.

    Raises:
        ShapeMismatchError: other sizes than the first differ.
        NotCollatableError: types differ.
    """
    return collate_sequences(batch, _pack)


def _pack(tensors: list[torch.Tensor]) -> Packed:
    lengths = np.array([len(t) for t in tensors])
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    values = join(tensors, (total, *tensors[0].shape[1:]))
    positions = alloc((total,), torch.int64)
    np.subtract(np.arange(total), np.repeat(ends - lengths, lengths), out=positions.numpy())
    limits = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))
    return Packed(values, positions, limits, int(lengths.max()))
