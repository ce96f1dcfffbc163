"""Batches made in the user's thread, each when it is asked for: nothing is ever in flight.

This is the way of most programs, and of the lightest batches: what is done here is paid for each of
them, so it is one function, and asks for nothing that nobody wants.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headrace.engine.doubt import BOOKS, SETTLED, WORKERS
from headrace.engine.epoch.policy import Policy, too_many_skipped, without_left_out
from headrace.engine.making.fetch import Fetcher
from headrace.engine.order.order import Tasks
from headrace.engine.stats import Counters
from headrace.engine.task import Done, Exhausted, Failed, Result, SkippedSample
from headrace.traffic import here, take

_LEFT = Done(0, None, 0, 0, 0.0)  # what the books hear of a batch that has nothing to say


class Inline:
    """Makes and hands out the batches of a stream of tasks."""

    def __init__(self, tasks: Tasks, fetcher: Fetcher, counters: Counters, policy: Policy) -> None:
        self._ask = tasks.ask
        self._seed_of = tasks.seed_of
        self._fetcher = fetcher
        self._make = fetcher.make
        self._counters = counters
        self._policy = policy
        # For the stream of an iterable dataset: the batches that were asked of it.
        self._number = policy.given_before[0] if policy.iterable and policy.given_before else 0
        self._pending: tuple[int, Any, int] | None = None  # runs here and now
        self._broken: Exception | None = None  # what ended the epoch for good
        self._last: Any = None  # the indices of the batch that was handed out last
        self._left_out: tuple[SkippedSample, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Return the next batch, or raise what user code raised while making it."""
        counters, policy = self._counters, self._policy
        counters.doubt = SETTLED  # nothing is taken yet: see headrace.engine.doubt
        if self._broken is not None:
            raise self._broken
        while True:
            started = counters.clock()
            step, indices, seed = self._pending or self._next_task()
            counters.doubt = WORKERS  # the task may be run again
            try:
                made = self._make(indices, seed)
            except BaseException as error:
                self._fetcher.put_back()  # what interrupted it may have come before it had
                if isinstance(error, Exception):
                    self._count_failed(step, error, started)
                raise
            counters.doubt = BOOKS
            self._pending = None
            if made is None:
                if policy.on_stream is not None:
                    policy.on_stream(0, Exhausted(step, 0, self._fetcher.state))
                raise StopIteration
            batch, samples = made
            made = None
            took = counters.clock() - started
            counters.fetch_s += took
            counters.wait_s += took
            if here.traffic is not None:
                counters.add_traffic(take())
            if policy.on_stream is not None or policy.on_step is not None:
                state = self._fetcher.state
                left = _LEFT if state is None else Done(step, None, samples, 0, 0.0, state)
                self._note(step, left)
            left_out: tuple[SkippedSample, ...] = ()
            if self._fetcher.skipped:
                left_out = tuple(self._fetcher.skipped)
                if not self._with_left_out(left_out, samples):
                    continue  # there is no batch
            self._last, self._left_out = indices, left_out
            counters.add_batch(samples, self._fetcher.weigh(batch, samples))
            return batch

    def _next_task(self) -> tuple[int, Any, int]:
        """Ask the sampler: return step, indices and seed, which stay until the batch is made."""
        self._counters.doubt = BOOKS
        try:
            step, indices = self._ask()
        except Exception:  # the sampler's own
            self._counters.doubt = SETTLED
            raise
        number = step
        if self._policy.iterable:
            number = self._number
            self._number += 1
        self._pending = step, indices, self._seed_of(number)
        return self._pending

    def mend(self) -> bool:
        """Say whether an interrupted step is whole: its task is run again, where that is all."""
        if self._broken is not None:
            return True  # it says why it cannot go on
        if self._counters.doubt != WORKERS:
            return self._counters.doubt != BOOKS
        return self._policy.movable

    def _count_failed(self, step: int, error: Exception, started: float) -> None:
        counters = self._counters
        counters.doubt = BOOKS
        self._pending = None
        counters.wait_s += counters.clock() - started
        counters.failed += 1
        self._note(step, Failed(step, error))
        counters.doubt = SETTLED

    def _note(self, step: int, result: Result) -> None:
        if self._policy.on_stream is not None:
            self._policy.on_stream(0, result)
        if self._policy.on_step is not None:
            self._policy.on_step(step)

    def _with_left_out(self, left_out: tuple[SkippedSample, ...], samples: int) -> bool:
        """Count the samples that were left out; say whether others are left."""
        self._counters.add_skipped(left_out)
        limit = self._policy.max_skipped
        count = self._counters.skipped_in_epoch
        if limit is not None and count > limit:
            self._counters.failed += 1
            self._broken = too_many_skipped(count, limit, left_out[-1])
            raise self._broken from left_out[-1].exception
        self._counters.failed += not samples
        return bool(samples)

    def last_indices(self) -> list[Any] | None:
        """Return the indices of the batch that left last; None for an iterable dataset."""
        return without_left_out(self._last, self._left_out)
