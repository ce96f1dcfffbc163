"""Columns gathered ahead in one background thread, for loaders that were given workers.

A process could do no more than this: the work is one copy, and the memory is the bottleneck. The
user's thread draws the order and hands out pieces of it, so every generator is used in one thread
only; the background thread does nothing but gather.

The order is drawn when torch's loader draws it for its workers: as many batches as they may have in
flight when the epoch begins, and one more with each batch that leaves. Somebody may draw from the
same generator in between.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from itertools import chain, islice
from queue import SimpleQueue
from typing import Any

from headrace.engine.doubt import BOOKS, SETTLED, WORKERS
from headrace.engine.making.gather import Block, BlockGather
from headrace.engine.order.order import Order, Piece

AHEAD = 2  # blocks that are ready or being gathered

_Asked = tuple[int, Piece]
_Made = tuple[int, Block | None]


class GatherThread:
    """Iterates over the batches of an order, whose blocks a thread gathers ahead."""

    def __init__(
        self, gather: BlockGather, order: Order, in_flight: int, ahead: int = AHEAD
    ) -> None:
        assert order.pieces is not None
        self._gather = gather
        self._pieces = gather.blocks_of(order.pieces)
        self._in_flight = in_flight
        self._ahead = ahead
        self._before = gather.counters.position
        self._drawn: deque[Piece] = deque()  # pieces that nobody was asked for yet
        self._drawn_batches = 0
        self._draw(in_flight)
        self._asked: SimpleQueue[_Asked | None] = SimpleQueue()
        self._made: SimpleQueue[_Made] = SimpleQueue()
        self._round = 0  # answers of an earlier one are not waited for any more
        self._waiting: deque[Piece] = deque()
        self._block: Iterator[Any] = iter(())
        self._batches: Iterator[Any] = iter(())  # those before something is to be drawn again
        self._pid = os.getpid()
        # The thread holds its queues and the gatherer, never this object, or it would live on.
        thread = threading.Thread(
            target=_run,
            args=(gather, self._asked, self._made),
            name="headrace-gather",
            daemon=True,
        )
        self._thread = thread
        # Before it runs: it ends with this object, wherever it is interrupted.
        self._stop = weakref.finalize(self, self._asked.put, None)
        thread.start()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Return the next batch; ask for more blocks before the present one is used up."""
        for batch in self._batches:
            return batch
        if os.getpid() != self._pid:
            self._gather.counters.doubt = SETTLED
            raise RuntimeError(
                f"this iterator belongs to process {self._pid}, and this is a fork of it. "
                f"Call iter(loader) in this process."
            )
        if not self._stop.alive:  # closed: nobody would answer
            self._gather.counters.doubt = SETTLED
            raise StopIteration
        gone = self._gather.counters.position - self._before
        self._draw(gone + 1 + self._in_flight)
        undrawn = self._drawn_batches - self._in_flight - gone
        while True:
            self._batches = islice(self._block, undrawn if undrawn > 0 else None)
            for batch in self._batches:
                return batch
            if not self._next_block():
                self.close()
                raise StopIteration

    def _draw(self, batches: int) -> None:
        """Draw so many batches of the order, or all there are."""
        while self._drawn_batches < batches:
            piece = next(self._pieces, None)
            if piece is None:
                return
            self._drawn.append(piece)
            self._drawn_batches += -(-len(piece.indices) // piece.batch_size)

    def _next_block(self) -> bool:
        """Ask for blocks, and wait for the next one; say whether there was one."""
        while self._drawn and len(self._waiting) < self._ahead:
            piece = self._drawn.popleft()
            self._waiting.append(piece)
            self._asked.put((self._round, piece))
        if not self._waiting:
            return False
        started = self._gather.counters.clock()
        self._gather.counters.doubt = WORKERS  # a block may be lost, its place in line is not
        answered, made = self._made.get()
        while answered != self._round:
            answered, made = self._made.get()
        self._gather.counters.doubt = BOOKS
        self._gather.counters.wait_s += self._gather.counters.clock() - started
        piece = self._waiting.popleft()
        self._block = chain.from_iterable(self._gather.hand_out(made, piece))
        return True

    def mend(self) -> bool:
        """Ask again for what is waited for, after an interruption; False if more is in doubt."""
        if self._gather.counters.doubt != WORKERS:
            return False
        self._round += 1
        for piece in self._waiting:
            self._asked.put((self._round, piece))
        return True

    def close(self) -> None:
        """End the thread."""
        self._stop()
        if os.getpid() == self._pid and self._thread.ident is not None:
            self._thread.join()


def _run(
    gather: BlockGather,
    asked: SimpleQueue[_Asked | None],
    made: SimpleQueue[_Made],
) -> None:
    while (message := asked.get()) is not None:
        number, piece = message
        made.put((number, gather.make_block(piece)))
        del message, piece
