"""Out of memory: telling it from other errors, giving cached memory back, halving a batch."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any

import torch

from headrace.tree import leaves, map_leaves

# What libraries under torch raise as a plain RuntimeError, where torch has no class for it.
_PHRASES = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception means that a device, or this machine, has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(p in str(error).lower() for p in _PHRASES)


def release_memory(device: torch.device | str = "cpu") -> None:
    """Give back what failed attempts left behind: reference cycles, and the device's cache."""
    gc.collect()
    kind = torch.device(device).type
    if kind == "cpu":
        return
    torch.get_device_module(kind).empty_cache()


def batch_rows(batch: Any) -> int | None:
    """Return the samples of a batch: the length that all its tensors share, None if they differ."""
    lengths = {len(t) for t in leaves(batch) if isinstance(t, torch.Tensor) and t.ndim > 0}
    return lengths.pop() if len(lengths) == 1 else None


def split_rows(batch: Any, parts: int) -> list[Any]:
    """Cut a batch along its first dimension into ``parts`` pieces of nearly equal length.

    What is no tensor goes into each piece as it is.
    """
    rows = batch_rows(batch)
    assert rows is not None
    cuts = [rows * k // parts for k in range(parts + 1)]

    def rows_of(start: int, stop: int) -> Any:
        def cut(leaf: Any) -> Any:
            return leaf[start:stop] if isinstance(leaf, torch.Tensor) and leaf.ndim > 0 else leaf

        return map_leaves(cut, batch)

    return [rows_of(*ends) for ends in pairwise(cuts) if ends[0] < ends[1]]
