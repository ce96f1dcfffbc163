"""Columns gathered ahead in one background thread, for loaders that were given workers.

A process could do no more than this: the work is one copy, and the memory is the bottleneck. The
user's thread draws the order and hands out pieces of it, so every generator is used in one thread
only; the background thread does nothing but gather.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from itertools import chain
from queue import SimpleQueue
from typing import Any

from headrace.data.gatherer import IndexArray
from headrace.engine.making.gather import Block, BlockGather
from headrace.engine.order.order import Order

AHEAD = 2  # blocks that are ready or being gathered


class GatherThread:
    """Iterates over the batches of an order, whose blocks a thread gathers ahead."""

    def __init__(self, gather: BlockGather, order: Order, ahead: int = AHEAD) -> None:
        assert order.chunks is not None
        self._gather = gather
        self._pieces = gather.pieces(order.chunks, order.batch_size, order.drop_last)
        self._batch_size = order.batch_size
        self._ahead = ahead
        self._asked: SimpleQueue[IndexArray | None] = SimpleQueue()
        self._made: SimpleQueue[Block | None] = SimpleQueue()
        self._waiting: deque[IndexArray] = deque()
        self._batches: Iterator[Any] = iter(())
        self._pid = os.getpid()
        # The thread holds its queues and the gatherer, never this object, or it would live on.
        thread = threading.Thread(
            target=_run,
            args=(gather, order.batch_size, self._asked, self._made),
            name="headrace-gather",
            daemon=True,
        )
        thread.start()
        self._thread = thread
        self._stop = weakref.finalize(self, self._asked.put, None)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Return the next batch; ask for more blocks before the present one is used up."""
        for batch in self._batches:
            return batch
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this iterator belongs to process {self._pid}, and this is a fork of it. "
                f"Call iter(loader) in this process."
            )
        if not self._stop.alive:  # closed: nobody would answer
            raise StopIteration
        while len(self._waiting) < self._ahead:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._waiting.append(piece)
            self._asked.put(piece)
        if not self._waiting:
            self.close()
            raise StopIteration
        started = self._gather.counters.clock()
        made = self._made.get()
        self._gather.counters.wait_s += self._gather.counters.clock() - started
        indices = self._waiting.popleft()
        self._batches = chain.from_iterable(self._gather.hand_out(made, indices, self._batch_size))
        return next(self)

    def close(self) -> None:
        """End the thread."""
        self._stop()
        if os.getpid() == self._pid:
            self._thread.join()


def _run(
    gather: BlockGather,
    batch_size: int,
    asked: SimpleQueue[IndexArray | None],
    made: SimpleQueue[Block | None],
) -> None:
    while (piece := asked.get()) is not None:
        made.put(gather.make_block(piece, batch_size))
        del piece
