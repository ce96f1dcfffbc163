"""The outputs of many batches as those of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headrace.errors import TrainingError
from headrace.tree import leaves, map_leaves


def joined(batches: list[Any]) -> Any:
    """Put the outputs of batches together: each tensor along its first dimension.

    What is no tensor is a list with the value of each batch.

    Raises:
        TrainingError: there is none, or their shapes differ beyond the first dimension.
    """
    if not batches:
        raise TrainingError("the loader gave no batch: there is nothing to predict.")
    columns = zip(*(leaves(batch) for batch in batches), strict=True)
    whole = iter([_join(column) for column in columns])
    return map_leaves(lambda _: next(whole), batches[0])


def _join(column: tuple[Any, ...]) -> Any:
    if not all(isinstance(part, Tensor) and part.ndim for part in column):
        return list(column)
    if len({part.shape[1:] for part in column}) > 1:
        shapes = sorted({tuple(part.shape[1:]) for part in column})
        raise TrainingError(
            f"outputs of shapes (batch, ...) with {shapes[0]} and {shapes[1]} behind the batch do "
            f"not fit into one tensor. Write predict(loader, join=False) for a list of them."
        )
    return torch.cat(column)
