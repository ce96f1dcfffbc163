"""Where the time of loading goes: counters while it runs, a frozen snapshot for the user."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Statistics:
    """What a loader has done since it was made.

    Attributes:
        path: how batches are made: ``"gather"`` (columns, in this process), ``"gather-thread"``
            (columns, one background thread), ``"inline"`` (samples, in this process),
            ``"process"`` (samples, in worker processes) or ``"torch"`` (torch's own machinery).
            Empty before the first epoch.
        epochs: iterations begun.
        batches: batches handed out.
        samples: samples in them.
        size_bytes: bytes of the tensors and arrays in them.
        wait_s: seconds that the loop waited inside ``next()`` for a batch to be made.
        fetch_s: seconds spent in making batches, summed over workers.
        restarts: workers that died and were replaced.
        moved: tasks that went from a slow worker to an idle one.
    """

    path: str
    epochs: int
    batches: int
    samples: int
    size_bytes: int
    wait_s: float
    fetch_s: float
    restarts: int
    moved: int


class Counters:
    """What a snapshot is taken from.

    Batches of one block are alike, so the hot loop counts batches only; ``set_batch`` says what one
    of them is worth.
    """

    def __init__(self) -> None:
        self.path = ""
        self.epochs = 0
        self.batches = 0
        self.wait_s = 0.0
        self.fetch_s = 0.0
        self.restarts = 0
        self.moved = 0
        self._settled = (0, 0, 0)  # batches, samples and bytes before the present kind of batch
        self._each = (0, 0)

    clock = staticmethod(time.perf_counter)

    def set_batch(self, samples: int, size_bytes: int) -> None:
        """Say how many samples and bytes each batch from now on has."""
        if self._each != (samples, size_bytes):
            self._settled = (self.batches, *self._totals())
            self._each = (samples, size_bytes)

    def add_batch(self, samples: int, size_bytes: int) -> None:
        """Count one batch."""
        self.set_batch(samples, size_bytes)
        self.batches += 1

    def fetched(self, started: float) -> None:
        """Count what was fetched in the user's own process, which waits meanwhile."""
        seconds = self.clock() - started
        self.fetch_s += seconds
        self.wait_s += seconds

    def _totals(self) -> tuple[int, int]:
        batches, samples, size_bytes = self._settled
        count = self.batches - batches
        return samples + count * self._each[0], size_bytes + count * self._each[1]

    def snapshot(self) -> Statistics:
        """Return what has been counted so far."""
        samples, size_bytes = self._totals()
        return Statistics(
            path=self.path,
            epochs=self.epochs,
            batches=self.batches,
            samples=samples,
            size_bytes=size_bytes,
            wait_s=self.wait_s,
            fetch_s=self.fetch_s,
            restarts=self.restarts,
            moved=self.moved,
        )
