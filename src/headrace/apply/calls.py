"""Calls of the function: on the device, without gradients, in pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from headrace.apply.rows import name_of, rows_of_result
from headrace.oom import batch_rows, cut_rows, is_out_of_memory, release_memory
from headrace.train.batch import call_model, inputs_of, to_device

MOST_ROWS = 65536
# Twice the rows take about twice the memory: grow where that is at most this part of what is free.
_SHARE = 0.5
_CALM = 16  # calls that must go well after an out of memory before a larger one is tried


class RowLimit:
    """How many rows a call may have: halved when memory runs out, doubled after calm.

    Each time that memory runs out, the calm before the next attempt is twice as long.

    Args:
        rows: to begin with.
        most: what it may grow to while there is memory to spare.
    """

    def __init__(self, rows: int, most: int) -> None:
        self.rows = rows
        self._held = rows  # the most rows that have fitted, or were asked for
        self._most = most
        self._calm = _CALM
        self._good = 0

    def fitted(self, rows: int, roomy: bool) -> None:
        """Take note of a call that went well; ``roomy``: twice the rows would fit too."""
        if rows < self.rows:
            return  # the last rows of a batch say nothing
        self._good += 1
        if self.rows < self._held:
            if self._good >= self._calm:
                self._grow(self._held)
        elif roomy:
            self._grow(self._most)
            self._held = self.rows

    def _grow(self, most: int) -> None:
        self.rows = min(2 * self.rows, most) if self.rows < most else self.rows
        self._good = 0

    def failed(self, rows: int) -> None:
        """Take note of a call for which there was not enough memory."""
        self._most = min(self._most, self._held)  # regained after calm, but not grown beyond
        self.rows = max(1, rows // 2)
        self._calm *= 2
        self._good = 0


class Calls:
    """Applies a function to batches, in as many calls as memory makes necessary.

    Args:
        function: of a batch; or a module, which gets the inputs of a batch.
        device: where to.
        limit: the rows of a call.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device, limit: RowLimit) -> None:
        self.name = name_of(function)
        self.limit = limit
        self._device = device
        self._call = function
        if isinstance(function, torch.nn.Module):
            self._call = partial(_call_module, function)

    def on(self, batch: Any) -> Iterator[tuple[int, Any]]:
        """Yield the rows and the result of each call, in order.

        Raises:
            RowMismatchError: a result has other rows than went in.
        """
        rows = batch_rows(batch)
        if not rows:
            result = self._attempt(batch)
            if result is None:
                raise self._cannot_split(rows)
            yield rows_of_result(result[0], rows, self.name), result[0]
            return
        start = 0
        while start < rows:
            size = min(self.limit.rows, rows - start)
            piece = batch if size == rows else cut_rows(batch, start, start + size)
            result = self._attempt(piece)
            if result is not None:
                rows_of_result(result[0], size, self.name)
                self.limit.fitted(size, result[1])
                yield size, result[0]
                start += size
                continue
            del piece
            release_memory(self._device)
            if size == 1:
                raise self._cannot_split(1)
            self.limit.failed(size)

    def _attempt(self, batch: Any) -> tuple[Any, bool] | None:
        """Return the result and whether twice the rows would fit; None where memory ran out."""
        try:
            with _Peak(self._device) as peak, torch.inference_mode():
                result = self._call(to_device(batch, self._device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._error = f"{type(error).__name__}: {error}"
            return None  # here the traceback goes, and with it what the call had allocated
        return result, peak.roomy

    def _cannot_split(self, rows: int | None) -> MemoryError:
        what = "one row" if rows == 1 else "a batch that cannot be cut into rows"
        return MemoryError(
            f"{self.name} ran out of memory on {what} ({self._error}). Free some memory on "
            f"{self._device}, or make the rows smaller."
        )


class _Peak:
    """Watches the memory of a CUDA device over a call."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self.roomy = False

    def __enter__(self) -> _Peak:
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        return self

    def __exit__(self, *error: object) -> None:
        if self._device is None or error[0] is not None:
            return
        taken = torch.cuda.max_memory_allocated(self._device) - self._before
        free, _ = torch.cuda.mem_get_info(self._device)
        cached = torch.cuda.memory_reserved(self._device) - self._before
        self.roomy = 2 * taken < _SHARE * (free + cached)


def _call_module(module: torch.nn.Module, batch: Any) -> Any:
    return call_model(module, inputs_of(batch))


def module_of(function: Any) -> torch.nn.Module | None:
    """Return the module that a function is, or is a method of, or a partial application of."""
    while isinstance(function, partial):
        function = function.func
    owner = getattr(function, "__self__", function)
    return owner if isinstance(owner, torch.nn.Module) else None


@contextmanager
def evaluating(module: torch.nn.Module | None) -> Iterator[None]:
    """Put a module into evaluation mode; afterwards each part is back in its own."""
    training = [] if module is None else [part for part in module.modules() if part.training]
    if module is not None:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
