"""Memory for batches: plain outside a fetch, a lease inside one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch


class Lender(Protocol):
    """What a fetch installs so that :func:`alloc` hands out leases.

    Below ``in_place_bytes`` it is quicker to let torch make the tensor where it likes.
    """

    in_place_bytes: int

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised CPU tensor of this shape on lent memory."""

    def empty_array(
        self, shape: Sequence[int], dtype: np.dtype[Any]
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Return an uninitialised array of this shape on lent memory."""


class _Current(threading.local):
    lender: Lender | None = None


current = _Current()


def alloc(shape: int | Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return an uninitialised CPU tensor for a batch, on leased memory where there is some.

    A collate function that writes its batch into ``alloc(shape, dtype)`` makes it where the
    training process will read it: no copy between processes, no fresh pages. Outside a loader
    it is ``torch.empty``. The tensor may be kept for as long as one likes: memory is lent again
    only when the last tensor on it is gone.

    Args:
        shape: sizes of the tensor, ``(batch, ...)``, or one size.
        dtype: type of its elements.
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    lender = current.lender
    if lender is None:
        return torch.empty(sizes, dtype=dtype, device="cpu")
    return lender.empty(sizes, dtype)


def alloc_array(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return an uninitialised NumPy array for a batch, on leased memory where there is some."""
    lender = current.lender
    if lender is None or dtype.hasobject:  # what lies in lent memory is not counted by Python
        return np.empty(tuple(shape), dtype)
    return lender.empty_array(shape, dtype)


def is_made_in_place(size_bytes: int) -> bool:
    """Say whether a leaf of so many bytes should be written straight into a lease."""
    lender = current.lender
    return lender is not None and size_bytes >= lender.in_place_bytes


def lend_from(lender: Lender | None) -> Lender | None:
    """Let :func:`alloc` borrow from a lender in this thread; return the one before."""
    before, current.lender = current.lender, lender
    return before


def lender_here() -> Lender | None:
    """Return what :func:`alloc` borrows from in this thread."""
    return current.lender


@contextmanager
def lending(lender: Lender | None) -> Iterator[None]:
    """Let :func:`alloc` borrow from a lender in this thread, inside the block."""
    before = lender_here()
    try:
        lend_from(lender)
        yield
    finally:
        lend_from(before)
