"""From samplers to batches of indices, in the order and at the moment torch would draw them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from headrace.data.gather import IndexArray
from headrace.engine.task import Task
from headrace.rng import task_seed
from headrace.sampling.order import exact_batches, index_chunks


class Order:
    """The index batches of one epoch.

    ``chunks`` is the order as arrays where the samplers are known arithmetic, with ``batch_size``
    and ``drop_last``; None where a custom sampler has to be asked.
    """

    def __init__(self, index_sampler: Any, auto_collation: bool) -> None:
        self.chunks: Iterator[IndexArray] | None = None
        self.batch_size = 1
        self.drop_last = False
        self._auto_collation = auto_collation
        self._custom: Iterator[Any] | None = None
        sampler = index_sampler
        if auto_collation:
            exact = exact_batches(index_sampler)
            sampler = None
            if exact is not None:
                sampler, self.batch_size, self.drop_last = exact
        if sampler is not None:
            self.chunks = index_chunks(sampler) if not auto_collation else _at_first_batch(sampler)
        if self.chunks is None:
            self._custom = iter(index_sampler)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over what the loader's index sampler would yield."""
        if self._custom is not None:
            return self._custom
        assert self.chunks is not None
        if not self._auto_collation:
            return (index for chunk in self.chunks for index in chunk.tolist())
        return self._lists(self.chunks)

    def _lists(self, chunks: Iterator[IndexArray]) -> Iterator[list[int]]:
        for indices in whole_batches(chunks, self.batch_size, self.drop_last):
            for start in range(0, len(indices), self.batch_size):
                yield indices[start : start + self.batch_size].tolist()


def _at_first_batch(sampler: Any) -> Iterator[IndexArray]:
    """Yield a known sampler's order as it is when the first batch is asked for.

    torch's ``BatchSampler`` is a generator: only then does it ask its sampler for an iterator, and
    a program may call ``set_epoch`` in between.
    """
    chunks = index_chunks(sampler)
    if chunks is None:  # known when the epoch began: let the sampler say what is wrong with it
        chunks = iter([np.array(list(sampler), np.intp)])
    yield from cast("Iterator[IndexArray]", chunks)


def whole_batches(
    chunks: Iterator[IndexArray], batch_size: int, drop_last: bool
) -> Iterator[IndexArray]:
    """Cut an order into pieces of whole batches, asking for a chunk only when a batch needs it."""
    rest: IndexArray = np.empty(0, np.intp)
    for chunk in chunks:
        indices = np.concatenate((rest, chunk)) if len(rest) else chunk
        whole = len(indices) // batch_size * batch_size
        rest = indices[whole:]
        if whole:
            yield indices[:whole]
    if len(rest) and not drop_last:
        yield rest


class Tasks:
    """Numbers index batches into tasks. It survives a sampler that raises."""

    def __init__(self, indices: Iterator[Any], base_seed: int, epoch: int) -> None:
        self._indices = indices
        self._base_seed = base_seed
        self._epoch = epoch
        self._step = 0

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        """Ask the sampler for the next batch of indices."""
        indices = next(self._indices)
        step = self._step
        self._step += 1
        return Task(self._epoch, step, indices, task_seed(self._base_seed, self._epoch, step))
