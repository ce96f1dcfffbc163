"""Sequences of different lengths in one nested tensor, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from headrace.collate.sequences import collate_sequences, join


def jagged_collate(batch: Sequence[Any]) -> Any:
    """Collate sequences into torch's nested tensors of jagged layout: (batch, ragged, ...).

    Tensors and arrays of shape (length, ...) and lists of numbers become one nested tensor; in
    dicts, tuples and lists each of them for itself. Everything else is collated by default.
    `batch.values()` are the steps of all samples, of shape (total, ...), `batch.offsets()` where
    each begins, `batch.unbind()` the sequences.

    Args:
        batch: samples of one structure.

    Raises:
        ShapeMismatchError: other sizes than the first differ.
        NotCollatableError: types differ.
    """
    return collate_sequences(batch, _jagged)


def _jagged(tensors: list[torch.Tensor]) -> torch.Tensor:
    lengths = [len(t) for t in tensors]
    values = join(tensors, (sum(lengths), *tensors[0].shape[1:]))
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int64, device=values.device)
    return torch.nested.nested_tensor_from_jagged(
        values, offsets, min_seqlen=min(lengths), max_seqlen=max(lengths)
    )
