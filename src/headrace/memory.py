"""Memory for batches: plain outside a fetch, a lease inside one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch


class Lender(Protocol):
    """What a fetch installs so that :func:`alloc` hands out leases."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised CPU tensor of this shape on lent memory."""


class _Current(threading.local):
    lender: Lender | None = None


_current = _Current()


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
    lender = _current.lender
    if lender is None:
        return torch.empty(sizes, dtype=dtype, device="cpu")
    return lender.empty(sizes, dtype)


@contextmanager
def lending(lender: Lender | None) -> Iterator[None]:
    """Let :func:`alloc` borrow from ``lender`` in this thread, inside the block."""
    before, _current.lender = _current.lender, lender
    try:
        yield
    finally:
        _current.lender = before
