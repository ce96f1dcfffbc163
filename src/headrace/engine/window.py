"""What is in flight, in which order it leaves, and what failure does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headrace.engine.backends.base import Backend
from headrace.engine.stats import Counters
from headrace.engine.task import Done, Exhausted, Failed, Task


class Window:
    """Hands out the batches of a stream of tasks."""

    def __init__(self, tasks: Iterator[Task], backend: Backend, counters: Counters) -> None:
        self._tasks = tasks
        self._backend = backend
        self._counters = counters
        self._in_flight = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Return the next batch, or raise what user code raised while making it."""
        started = self._counters.clock()
        self._top_up()
        if not self._in_flight:
            raise StopIteration
        result = self._backend.get()
        self._in_flight -= 1
        if isinstance(result, Exhausted):
            raise StopIteration
        self._counters.wait_s += self._counters.clock() - started
        if isinstance(result, Failed):
            error = result.error
            del result
            try:
                raise error
            finally:
                del error  # the traceback holds this frame: no circle through it
        return self._hand_out(result)

    def _top_up(self) -> None:
        while self._in_flight < self._backend.depth:
            task = next(self._tasks, None)
            if task is None:
                return
            self._backend.submit(task)
            self._in_flight += 1

    def _hand_out(self, done: Done) -> Any:
        self._counters.fetch_s += done.fetch_s
        self._counters.add_batch(done.samples, done.size_bytes)
        return done.batch

    def close(self) -> None:
        """End what was started."""
        self._backend.close()
