"""Batches of columnar data: one gather into a leased block, whose slices are the batches.

No task and no backend here: a batch is a slice that is already there. One thread, because the
barrier of a thread pool stalls for a scheduler quantum on a busy machine.

What is gathered ahead must not be seen. It happens only over orders that are arithmetic
(:mod:`headrace.sampling.order`), never past what the order has drawn, and a block is gathered
again when a tensor under it has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch

from headrace.data.gatherer import Array, Gatherer, IndexArray, Leaf, in_range
from headrace.engine.doubt import SETTLED
from headrace.engine.lease import SMALL_LEAF_BYTES, Pool
from headrace.engine.making.recipe import listed
from headrace.engine.order.order import Piece
from headrace.engine.stats import Counters
from headrace.machine import second_level_cache_bytes
from headrace.tree import NUMPY_DTYPES, is_namedtuple, leaves, size_bytes

# What a core's own cache holds; long enough that its set-up does not show, and soon there.
BLOCK_BYTES = max(1 << 20, min(second_level_cache_bytes(), 4 << 20))
MAX_BLOCK_BATCHES = 256  # who keeps one batch keeps its block
_NOTHING: IndexArray = np.empty(0, np.intp)

Assemble: TypeAlias = Callable[[Iterable[torch.Tensor]], Any]


class Block(NamedTuple):
    """Gathered batches, and the version of the columns that they were gathered from."""

    batches: Iterator[Any]
    size: int
    version: int
    seconds: float


class BlockGather:
    """Gathers index arrays into leased blocks and cuts them into batches, of tensors or arrays."""

    def __init__(
        self,
        gatherer: Gatherer,
        pool: Pool,
        counters: Counters,
        block_bytes: int = BLOCK_BYTES,
        arrays: bool = False,
    ) -> None:
        self.counters = counters
        self._gatherer = gatherer
        self._leaves: list[Leaf] = leaves(gatherer.spec)
        self._watched = gatherer.watched or ()
        self._only_when_due = gatherer.watched is None
        self._assemble = assembler(gatherer.spec)
        self._finish = [_as_is if arrays else _to_torch(leaf) for leaf in self._leaves]
        self._pool = pool
        self._block_bytes = block_bytes
        self._sample_bytes = sum(leaf.size_bytes for leaf in self._leaves)
        self._failed = _NOTHING
        self._piece: tuple[Any, int, int] = (_NOTHING, 1, 0)  # for last_indices()

    def ahead(self, pieces: Iterator[Piece]) -> Iterator[Any]:
        """Return the batches of an order, gathering blocks ahead.

        An exception costs one batch: ``chain`` asks the iterator that raised once more, finds it
        at its end, and goes on with the next one.
        """
        return chain.from_iterable(self._in_turn(pieces))

    def _in_turn(self, pieces: Iterator[Piece]) -> Iterator[Iterator[Any]]:
        for piece in self.blocks_of(pieces):
            block = self.make_block(piece)
            if block is not None:
                self.counters.wait_s += block.seconds
            yield from self.hand_out(block, piece)

    def blocks_of(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Yield an order in pieces of one block each."""
        for indices, batch_size in pieces:
            block = self._block_bytes // max(1, self._sample_bytes * batch_size)
            block = max(1, min(block, MAX_BLOCK_BATCHES))
            if self._only_when_due:
                block = 1
            for start in range(0, len(indices), block * batch_size):
                yield Piece(indices[start : start + block * batch_size], batch_size)

    def make_block(self, piece: Piece) -> Block | None:
        """Gather the whole batches at the front of a piece; None where that raises.

        Which of the batches raises is then found by making them one by one.
        """
        indices, batch_size = piece
        try:
            return self._gather(indices, min(batch_size, len(indices)))
        except Exception:
            return None

    def hand_out(self, block: Block | None, piece: Piece) -> Iterator[Iterator[Any]]:
        """Yield iterators over the batches of a piece, whose first ones stand in ``block``."""
        failed, batch_size = piece
        if block is not None:
            yield self._batches(block, piece)
            failed, self._failed = self._failed, _NOTHING
        for first in range(0, len(failed), batch_size):
            yield map(self._one, (failed[first : first + batch_size],))

    def _batches(self, block: Block, piece: Piece) -> Iterator[Any]:
        """Yield the batches of a block, gathering again what a change of the columns overtook."""
        indices, batch_size = piece
        counters = self.counters
        watched = self._watched
        self._piece = indices, batch_size, counters.batches
        done = 0
        while True:
            batches, size, version, seconds = block
            counters.fetch_s += seconds
            counters.set_batch(size, size * self._sample_bytes)
            if version == self._version():
                for batch in batches:
                    counters.batches += 1
                    done += size
                    yield batch
                    # 56 ns a tensor; a generator or sum() here would cost as much as the batch.
                    now = 0
                    for tensor in watched:
                        now += tensor._version
                    if now != version:
                        break
            if done >= len(indices):
                return
            again = self.make_block(Piece(indices[done:], batch_size))
            if again is None:
                self._failed = indices[done:]
                return
            counters.wait_s += again.seconds
            block = again

    def due(self, indices: Any, otherwise: Callable[[Any], Any]) -> Any:
        """Return the batch of a custom sampler's ``indices``, gathered now.

        What are no plain integers (tensors, slices) is left to ``otherwise``.
        """
        if not isinstance(indices, (list, tuple, range, np.ndarray, torch.Tensor)):
            indices = listed(indices)  # a set, a generator: may be walked once only
        self.counters.failed += 1  # unless it turns out well
        try:
            array = in_range(indices, len(self._gatherer), "the dataset")
            self._piece = indices, len(indices), self.counters.batches
            if array is None or len(array) == 0:
                batch = otherwise(indices)
                self.counters.add_batch(len(indices), size_bytes(batch))
            else:
                batch = self._gathered(array)
        except Exception:  # takes the place of its batch
            self.counters.doubt = SETTLED
            raise
        self.counters.failed -= 1
        return batch

    def _one(self, indices: IndexArray) -> Any:
        """Return the batch of ``indices``, or raise for it alone."""
        self.counters.failed += 1
        self._piece = indices, len(indices), self.counters.batches
        try:
            array = in_range(indices, len(self._gatherer), "the dataset")
            assert array is not None
            batch = self._gathered(array)
        except Exception:  # takes the place of its batch
            self.counters.doubt = SETTLED
            raise
        self.counters.failed -= 1
        return batch

    def _gathered(self, array: IndexArray) -> Any:
        block = self._gather(array, len(array))
        self.counters.fetch_s += block.seconds
        self.counters.wait_s += block.seconds
        self.counters.add_batch(len(array), len(array) * self._sample_bytes)
        return next(block.batches)

    def last_indices(self) -> list[Any]:
        """Return the indices of the batch that was handed out last."""
        indices, batch_size, before = self._piece
        start = max(0, self.counters.batches - before - 1) * batch_size
        some = indices[start : start + batch_size] if isinstance(indices, np.ndarray) else indices
        return some.tolist() if isinstance(some, (np.ndarray, torch.Tensor)) else list(some)

    def _version(self) -> int:
        return sum([tensor._version for tensor in self._watched])

    def _gather(self, indices: IndexArray, batch_size: int) -> Block:
        """Return the whole batches at the front of ``indices``, gathered at once."""
        started = self.counters.clock()
        version = self._version()
        count = len(indices) // batch_size
        rows = count * batch_size
        if not self._all_in_range(indices):  # raises, or some count from the end
            indices = cast("IndexArray", in_range(indices, len(self._gatherer), "the dataset"))
        out = [self._rows(leaf, rows) for leaf in self._leaves]
        self._gatherer.gather(indices[:rows], out)
        columns = [
            map(finish, array.reshape(count, batch_size, *leaf.shape))
            for finish, leaf, array in zip(self._finish, self._leaves, out, strict=True)
        ]
        batches = map(self._assemble, zip(*columns, strict=True))
        return Block(batches, batch_size, version, self.counters.clock() - started)

    def _all_in_range(self, indices: IndexArray) -> bool:
        # A sampler may be torch's own and yet be made for another dataset. Read as unsigned, a
        # negative index is large: one pass finds both.
        unsigned = indices.view(f"u{indices.itemsize}") if indices.dtype.kind == "i" else indices
        return bool(unsigned.max() < len(self._gatherer))

    def _rows(self, leaf: Leaf, rows: int) -> Array:
        size_bytes = rows * leaf.size_bytes
        if size_bytes < SMALL_LEAF_BYTES:
            return np.empty((rows, *leaf.shape), leaf.carrier)
        raw = self._pool.lend(size_bytes)[:size_bytes]
        return raw.view(leaf.carrier).reshape(rows, *leaf.shape)


def assembler(spec: Any) -> Assemble:
    """Return the function that puts the leaves of one batch, in order, into ``spec``'s shape."""
    if isinstance(spec, Leaf):
        return _only
    inner = list(spec.values()) if isinstance(spec, dict) else list(spec)
    if all(isinstance(part, Leaf) for part in inner):
        if isinstance(spec, dict):
            keys = list(spec)
            return lambda tensors: dict(zip(keys, tensors, strict=True))
        return (lambda tensors: type(spec)(*tensors)) if is_namedtuple(spec) else list
    return lambda tensors: _refill(spec, iter(tensors))


def _only(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    (tensor,) = tensors
    return tensor


def _refill(spec: Any, tensors: Iterator[torch.Tensor]) -> Any:
    if isinstance(spec, Leaf):
        return next(tensors)
    if isinstance(spec, dict):
        return {key: _refill(part, tensors) for key, part in spec.items()}
    parts = [_refill(part, tensors) for part in spec]
    return type(spec)(*parts) if is_namedtuple(spec) else parts


def _as_is(array: Array) -> Array:
    return array


def _to_torch(leaf: Leaf) -> Callable[[Array], torch.Tensor]:
    if leaf.dtype in NUMPY_DTYPES:
        return torch.from_numpy
    return lambda array: torch.from_numpy(array).view(leaf.dtype)
