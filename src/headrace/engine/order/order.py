"""From samplers to batches of indices, in the order and at the moment torch would draw them."""

from __future__ import annotations

import itertools
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, cast
from zlib import crc32

import numpy as np

from headrace.data.gatherer import IndexArray
from headrace.engine.order.facts import epoch_setter
from headrace.engine.order.packing import others
from headrace.engine.task import Task
from headrace.rng import mix, mix_range
from headrace.sampling.order import exact_batches, index_chunks, is_exact
from headrace.sampling.planned import is_planned
from headrace.sampling.ranks import Shard

_LISTED = 4096  # indices that become Python's integers at once
_SEEDS = 64  # steps whose seeds are computed at once


class Piece(NamedTuple):
    """Consecutive batches of one size, as one array of indices; the last may be smaller."""

    indices: IndexArray
    batch_size: int


class Order:
    """The index batches of one epoch, which is one of three.

    *Arithmetic*: a known sampler's indices, cut into batches of a fixed size; any position is
    reached at once, or by drawing again what the positions before it draw. *Planned*: a seed gives
    all batches as arrays. Both are ``pieces``. *Asked*: a stranger's sampler yields its index
    batches one by one, and ``pieces`` is None.

    To go on behind ``steps`` batches, an arithmetic order begins at position ``start``, counted in
    samples, a planned one at a batch, and an asked one is replayed.
    """

    def __init__(
        self,
        index_sampler: Any,
        auto_collation: bool,
        start: int = 0,
        shard: Shard | None = None,
        *,
        steps: int = 0,
    ) -> None:
        self._mark = _Mark(epoch_setter(index_sampler))
        self.drawn = 0  # how often a stranger's sampler was asked for an index batch
        self._ended = False
        self._start, self._steps = start, steps
        self._kept: deque[Any] = deque()
        self.pieces: Iterator[Piece] | None = None
        self._flat = False  # indices leave one by one
        self._custom: Iterator[Any] | None = None
        self._hashes = array("I", [0])  # behind each index batch that a custom sampler gave
        self._plan: tuple[IndexArray, IndexArray] | None = None
        self._plan_hash: int | None = None
        self.planned = self.asked = False
        self.others_at_start: list[str] | None = (
            None  # generators that an asked order may draw from
        )
        self._sampler, self._drop_last = index_sampler, False
        self.batch_size: int | None = None if is_planned(index_sampler) else 1  # None: they differ
        exact = exact_batches(index_sampler) if auto_collation else None
        if shard is not None and not is_planned(index_sampler):  # else it is the rank's own part
            self._custom = _rank_batches(index_sampler, shard, start)
        elif exact is not None:
            self._sampler, self.batch_size, self._drop_last = exact
            self.pieces = self._cut(_when_asked(self._sampler, self._mark))
        elif not auto_collation and is_exact(index_sampler):
            self._flat = True
            self.pieces = self._cut(_when_asked(self._sampler, self._mark))
        elif is_planned(index_sampler):
            self.planned = True
            self.pieces = self._planned()
        else:
            self.asked = True
            self.others_at_start = others()
            self._custom = iter(index_sampler)

    @property
    def sampler_epoch(self) -> int | None:
        """The epoch that the sampler was set to when the order was drawn, or is set to now."""
        return self._mark.epoch()

    @property
    def begun(self) -> bool:
        """Whether anything has been drawn for the order."""
        return self._mark.begun

    def go_on(self) -> None:
        """Draw now what the positions before ``start`` draw; no data is read."""
        self._mark.begin()
        if self.pieces is None:
            return
        if self.planned:
            self._plan = self._sampler.plan(self._sampler.draw_seed())
            return
        chunks = index_chunks(self._sampler, self._start)
        assert chunks is not None
        first = list(itertools.islice(chunks, 1))
        self.pieces = self._cut(cast("Iterator[IndexArray]", itertools.chain(first, chunks)))

    def _cut(self, chunks: Iterator[IndexArray]) -> Iterator[Piece]:
        size = self.batch_size
        assert size is not None
        return (Piece(indices, size) for indices in whole_batches(chunks, size, self._drop_last))

    def _planned(self) -> Iterator[Piece]:
        """Yield a plan's batches, those of one size in a row together, when they are asked for."""
        if self._plan is None:
            self._mark.begin()
            self._plan = self._sampler.plan(self._sampler.draw_seed())
        indices, offsets = self._plan
        sizes = np.diff(offsets)
        if len(sizes) and int(sizes.min()) < 1:
            name = type(self._sampler).__name__
            raise ValueError(f"batch {int(sizes.argmin())} of the plan of {name} is empty.")
        changes = np.flatnonzero(np.diff(sizes[self._steps :])) + self._steps + 1
        firsts = [self._steps, *changes.tolist()]
        for first, behind in itertools.pairwise([*firsts, len(sizes)]):
            if first < behind:
                yield Piece(indices[offsets[first] : offsets[behind]], int(sizes[first]))

    def replay(self, drawn: int, steps: int) -> None:
        """Ask a custom sampler for ``drawn`` index batches, and leave out the first ``steps``.

        More may have been drawn than handed out, for batches that were prefetched.
        """
        for number in range(drawn):
            try:
                batch = self._draw()
            except StopIteration:
                break
            if number >= steps:
                self._kept.append(batch)

    def has_ended(self) -> bool:
        """Ask a custom sampler, behind its last index batch, for its end; say whether it came."""
        if not self._ended and not self._kept:
            with suppress(StopIteration):
                self._kept.append(self._draw())
        return self._ended

    def end(self) -> None:
        """Ask for nothing more: all of this epoch was handed out."""
        self._kept.clear()
        self._custom = iter(())

    def __next__(self) -> Any:
        """Ask a custom sampler for its next index batch."""
        if self._kept:
            return self._kept.popleft()
        return self._draw()

    def _draw(self) -> Any:
        self._mark.begin()
        try:
            batch = next(cast("Iterator[Any]", self._custom))
        except StopIteration:
            # It counts, once: with drop_last the samples of no batch are drawn by it.
            self.drawn += not self._ended
            self._ended = True
            raise
        self.drawn += 1
        self._hashes.append(crc32(_as_bytes(batch), self._hashes[-1]))
        return batch

    def hash_behind(self, steps: int) -> int | None:
        """Return a hash of an asked order's first ``steps`` index batches, or of a whole plan.

        None where it is not known, or need not be: where facts name the order, which are the same
        on all ranks.
        """
        named = hasattr(self._sampler, "order_facts")
        if self._plan is not None and self._plan_hash is None and not named:
            indices, offsets = (np.ascontiguousarray(array, np.int64) for array in self._plan)
            self._plan_hash = crc32(indices.tobytes(), crc32(offsets.tobytes()))
        known = self.asked and steps < len(self._hashes)
        return self._hashes[steps] if known else self._plan_hash

    def __iter__(self) -> Iterator[Any]:
        """Iterate over what the loader's index sampler would yield."""
        if self.pieces is None:
            return self
        if self._flat:
            return (index for piece in self.pieces for index in piece.indices.tolist())
        return _lists(self.pieces)


def _lists(pieces: Iterable[Piece]) -> Iterator[list[int]]:
    """Yield batches as lists: many indices become Python's integers at once."""
    for indices, batch_size in pieces:
        whole = max(1, _LISTED // batch_size) * batch_size
        for first in range(0, len(indices), whole):
            some = indices[first : first + whole].tolist()
            for start in range(0, len(some), batch_size):
                yield some[start : start + batch_size]


def _as_bytes(indices: Any) -> Any:
    """Return index batches as bytes that are the same in each process."""
    if isinstance(indices, Iterator):
        return b""  # to be walked once only, by the fetch
    try:
        return array("q", indices)
    except (TypeError, OverflowError):  # one index, or indices that are no integers
        return repr(indices).encode()


class _Mark:
    """Whether an order has begun: apart from it, as its generator must not refer back to it."""

    def __init__(self, setter: Any) -> None:
        self.begun = False
        self._setter = setter
        self._epoch: int | None = None

    def begin(self) -> None:
        if not self.begun:
            self.begun, self._epoch = True, self.epoch()

    def epoch(self) -> int | None:
        if self.begun or self._setter is None:
            return self._epoch
        return int(self._setter.epoch)


def _when_asked(sampler: Any, mark: _Mark) -> Iterator[IndexArray]:
    """Yield a known sampler's order as it is when the first batch is asked for.

    torch's samplers are generators: they draw then, and a program may call ``set_epoch`` in
    between.
    """
    mark.begin()
    chunks = index_chunks(sampler)
    if chunks is None:  # known when the epoch began: let the sampler say what is wrong with it
        chunks = iter([np.array(list(sampler), np.int64)])
    yield from cast("Iterator[IndexArray]", chunks)


def _rank_batches(batch_sampler: Any, shard: Shard, start: int) -> Iterator[list[int]]:
    """Return one rank's index batches of a global order, from a position on."""
    sampler = batch_sampler.sampler
    chunks = cast("Iterator[IndexArray] | None", index_chunks(sampler, start))
    if chunks is None:
        indices = itertools.islice(sampler, start, None)
        pieces = iter(lambda: list(itertools.islice(indices, shard.global_batch)), [])
        chunks = (np.array(piece, np.int64) for piece in pieces)
    return (batch.tolist() for batch in shard.batches(cast("Any", chunks), len(sampler), start))


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
    """Numbers index batches into tasks. It survives a sampler that raises.

    Steps of ``ahead`` were handed out before, out of order: they are passed over.
    """

    def __init__(
        self,
        indices: Iterator[Any],
        base_seed: int,
        epoch: int,
        step: int = 0,
        *,
        after_each: Callable[[int], None] | None = None,
        ahead: Collection[int] = (),
    ) -> None:
        self._indices = indices
        self._epoch_seed = mix(base_seed, epoch)  # task_seed() of a step goes on from it
        self._seeds: list[int] = []  # of the steps from ``_seeds_from`` on
        self._seeds_from = 0
        self._epoch = epoch
        self._step = step
        self._after_each = after_each
        self._ahead = ahead

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        """Ask the sampler for the next batch of indices."""
        step, indices = self.ask()
        return Task(self._epoch, step, indices, self.seed_of(step))

    def seed_of(self, step: int) -> int:
        """Return the seed of a step's task."""
        place = step - self._seeds_from
        if not 0 <= place < len(self._seeds):
            self._seeds_from, place = step, 0
            self._seeds = mix_range(step, _SEEDS, self._epoch_seed)
        return self._seeds[place]

    def ask(self) -> tuple[int, Any]:
        """Ask the sampler for the next batch of indices; return its step too."""
        indices = next(self._indices)
        step = self._step
        self._step += 1
        if self._after_each is not None:
            self._after_each(step)
        if self._ahead:
            self._pass_over()  # now: a state taken behind this step says that they are past
        return step, indices

    def _pass_over(self) -> None:
        if self._step in self._ahead:
            self.ask()

    def of_stream(self, task: Task, worker: int, number: int, workers: int) -> Task:
        """Return a task for the ``number``-th batch of one worker's stream.

        When a worker learns that another's stream has ended is a matter of chance, so the seed
        follows from its own count. While all streams last that is the seed of the step.
        """
        seed = mix(number * workers + worker, state=self._epoch_seed)
        return task._replace(seed=seed)
