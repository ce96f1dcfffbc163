"""What batches weigh, without walking through each of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from headrace.tree import size_bytes

_EVERY = 64  # one batch in so many is weighed
_FEW = 8  # parts that are all looked at


class Scale:
    """Returns the bytes of the tensors and arrays in a batch.

    A batch of few tensors is weighed each time. Of others one in 64 is, by some of its parts where
    they are many, and the rest in proportion to their samples: to walk through a list of 512
    samples takes longer than to make it. ``exact`` weighs all of them, where a bound in bytes was
    asked for.
    """

    def __init__(self, exact: bool = False) -> None:
        self._exact = exact
        self._until = 0
        self._each = 0.0

    def __call__(self, batch: Any, samples: int) -> int:
        """Return the bytes of a batch of so many samples."""
        if self._exact:
            return size_bytes(batch)
        kind = type(batch)
        if kind is list or kind is tuple or kind is dict:
            if len(batch) <= _FEW:
                weight = _of_tensors(batch.values() if kind is dict else batch)
                if weight is not None:
                    return weight
        elif kind is torch.Tensor and batch.layout is torch.strided:
            size: int = batch.nbytes
            return size
        if not samples:
            return 0
        if not self._until:
            self._until = _EVERY
            self._each = _by_some(batch) / samples
        self._until -= 1
        return round(self._each * samples)


def _of_tensors(parts: Iterable[Any]) -> int | None:
    """Return the bytes of strided tensors; None where there is something else."""
    weight = 0
    for part in parts:
        if type(part) is not torch.Tensor or part.layout is not torch.strided:
            return None
        weight += part.nbytes
    return weight


def _by_some(batch: Any) -> float:
    """Return the bytes of a batch, of long sequences by every so many-th part."""
    kind = type(batch)
    if (kind is list or kind is tuple) and len(batch) > _FEW:
        some = batch[:: len(batch) // _FEW]
        return sum(map(_by_some, some)) * len(batch) / len(some)
    if kind is list or kind is tuple:
        return sum(map(_by_some, batch))
    return size_bytes(batch)
