"""Out of memory: telling it from other errors, giving cached memory back, halving a batch."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any

import numpy as np
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
    if kind == "cuda":
        _clear_workspaces()
    torch.get_device_module(kind).empty_cache()


def _clear_workspaces() -> None:
    """Let go of cuBLAS's scratch memory, which is made again when it is needed.

    torch keeps 32 MiB for each handle and stream, cut from whatever block was free: one that lies
    in a block of a failed attempt keeps all of that from being given back, many gigabytes.
    """
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()


def batch_rows(batch: Any) -> int | None:
    """Return the rows of a batch: the length of all its tensors and arrays, None if they differ."""
    lengths = {len(leaf) for leaf in leaves(batch) if _has_rows(leaf)}
    return lengths.pop() if len(lengths) == 1 else None


def cut_rows(batch: Any, start: int, stop: int) -> Any:
    """Return rows ``[start, stop)`` of a batch, as views.

    Tensors and arrays are cut, and lists of one string for each row, as collation makes them; what
    else there is goes along as it is.
    """
    rows = batch_rows(batch)

    def is_text(part: Any) -> bool:
        return (
            type(part) in (list, tuple)
            and len(part) == rows
            and all(isinstance(row, (str, bytes)) for row in part)
        )

    def cut(leaf: Any) -> Any:
        return leaf[start:stop] if _has_rows(leaf) or is_text(leaf) else leaf

    return map_leaves(cut, batch, is_text)


def split_rows(batch: Any, parts: int) -> list[Any]:
    """Cut a batch with :func:`cut_rows` into ``parts`` pieces of nearly equal length."""
    rows = batch_rows(batch)
    assert rows is not None
    cuts = [rows * k // parts for k in range(parts + 1)]
    return [cut_rows(batch, *ends) for ends in pairwise(cuts) if ends[0] < ends[1]]


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, (torch.Tensor, np.ndarray)) and leaf.ndim > 0
