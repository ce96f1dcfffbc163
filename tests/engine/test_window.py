"""The window without processes: a backend whose workers answer when the test says so."""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace import DataLoader
from headrace.engine.backends.base import Backend, Finished
from headrace.engine.epoch.policy import Policy
from headrace.engine.epoch.window import SLOW_S, Window
from headrace.engine.order.order import Tasks
from headrace.engine.stats import Counters
from headrace.engine.task import Done, Exhausted, Failed, Task
from headrace.errors import WorkerTimeoutError

many = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Manual(Backend):
    """Workers in memory. ``choose`` picks, of those with work, whose task ends next.

    A task may take some seconds of ``clock``; one that has begun cannot be taken back.
    """

    def __init__(self, workers: int, choose: Callable[[list[int]], int] | None = None) -> None:
        self.workers = workers
        self.clock = Clock()
        self.given: list[list[int]] = [[] for _ in range(workers)]  # every step, for ever
        self.queues: list[deque[Task]] = [deque() for _ in range(workers)]
        self.begun: list[float | None] = [None] * workers
        self.starting: set[int] = set()  # workers that have read nothing yet
        self.takes: Callable[[Task], float] = lambda task: 0.0
        self.make: Callable[[int, Task], Any] = lambda worker, task: Done(
            task.step, task.step, 1, 8, 0.0
        )
        self.finished: list[int] = []
        self.most = 0
        self._choose = choose or (lambda ready: ready[0])

    def submit(self, worker: int, task: Task) -> None:
        self.given[worker].append(task.step)
        self.queues[worker].append(task)
        self.most = max(self.most, sum(map(len, self.queues)))
        self._begin(worker)

    def _begin(self, worker: int) -> None:
        if self.begun[worker] is None and self.queues[worker]:
            self.begun[worker] = self.clock.now

    def _end(self, worker: int) -> float:
        begun = self.begun[worker]
        assert begun is not None
        return begun + self.takes(self.queues[worker][0])

    def get(self, timeout_s: float | None) -> Finished | None:
        busy = [w for w in range(self.workers) if self.queues[w]]
        if not busy:
            assert timeout_s is not None, "waits for ever"
            self._wait(timeout_s)
            return None
        first = min(map(self._end, busy))
        if timeout_s is not None and first > self.clock.now + timeout_s:
            self._wait(timeout_s)
            return None
        self.clock.now = max(self.clock.now, first)
        worker = self._choose([w for w in busy if self._end(w) <= self.clock.now])
        task = self.queues[worker].popleft()
        self.begun[worker] = None
        self._begin(worker)
        self.finished.append(task.step)
        self.starting.discard(worker)
        return Finished(worker, self.make(worker, task))

    def _wait(self, timeout_s: float) -> None:
        self.clock.now += max(timeout_s, 1e-6)  # a clock that stands still is no clock

    def retract(self, worker: int) -> list[Task]:
        queue = self.queues[worker]
        taken = list(queue)[worker not in self.starting :]
        for _ in taken:
            queue.pop()
        return taken

    def describe(self, worker: int) -> str:
        return f"worker {worker} is made up"

    def close(self) -> None:
        pass


def window(
    backend: Manual, indices: Any, counters: Counters | None = None, **policy: Any
) -> Window:
    counters = counters or Counters()
    counters.clock = backend.clock  # type: ignore[method-assign]
    options = {"depth": 2 * backend.workers, **policy}
    return Window(Tasks(iter(indices), 7, 0), backend, counters, Policy(**options))


def chooser(data: st.DataObject) -> Callable[[list[int]], int]:
    return lambda ready: data.draw(st.sampled_from(ready))


@many
@given(st.integers(1, 5), st.integers(0, 30), st.integers(1, 4), st.data())
def test_in_order_whatever_order_they_are_made_in(
    workers: int, n: int, prefetch: int, data: st.DataObject
) -> None:
    backend = Manual(workers, chooser(data))
    made = window(backend, range(n), depth=prefetch * workers)
    assert sum(map(len, backend.given)) == min(n, prefetch * workers), "begins before it is asked"
    assert list(made) == list(range(n))
    assert list(made) == []
    assert backend.most <= prefetch * workers
    for worker, steps in enumerate(backend.given):
        assert steps == list(range(worker, n, workers)), "batch i goes to worker i mod n"


@many
@given(st.integers(1, 5), st.integers(0, 30), st.data())
def test_out_of_order_as_they_are_made(workers: int, n: int, data: st.DataObject) -> None:
    backend = Manual(workers, chooser(data))
    left = list(window(backend, range(n), in_order=False))
    assert left == backend.finished
    assert sorted(left) == list(range(n))


@many
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(1, 3), st.data(), st.booleans()
)
def test_streams_that_end_at_different_times(
    lengths: list[int], prefetch: int, data: st.DataObject, in_order: bool
) -> None:
    workers = len(lengths)
    backend = Manual(workers, chooser(data))
    left = list(lengths)

    def make(worker: int, task: Task) -> Any:
        if not left[worker]:
            return Exhausted(task.step, worker)
        left[worker] -= 1
        return Done(task.step, (worker, lengths[worker] - left[worker] - 1), 1, 8, 0.0)

    backend.make = make
    batches = list(
        window(
            backend,
            itertools.repeat(None),
            iterable=True,
            in_order=in_order,
            depth=prefetch * workers,
        )
    )
    rounds = [(w, n) for n in range(max(lengths, default=0)) for w in range(workers)]
    expected = [(w, n) for w, n in rounds if n < lengths[w]]
    if in_order:
        assert batches == expected, "round and round, past those at their end"
    else:
        assert sorted(batches) == sorted(expected)


@many
@given(st.integers(1, 4), st.lists(st.booleans(), max_size=20), st.data())
def test_errors_leave_in_their_turn_and_the_rest_follows(
    workers: int, fails: list[bool], data: st.DataObject
) -> None:
    backend = Manual(workers, chooser(data))
    backend.make = lambda worker, task: (
        Failed(task.step, KeyError(task.step))
        if fails[task.step]
        else Done(task.step, task.step, 1, 8, 0.0)
    )
    made, seen = window(backend, range(len(fails))), []
    while True:
        try:
            seen.append((False, next(made)))
        except StopIteration:
            break
        except KeyError as error:
            seen.append((True, error.args[0]))
    assert seen == [(fail, step) for step, fail in enumerate(fails)]


def test_an_error_of_the_sampler_leaves_after_what_was_drawn_before() -> None:
    def sampler() -> Iterator[int]:
        yield from range(5)
        raise RuntimeError("no more coal")

    made = window(Manual(2), sampler())
    assert [next(made) for _ in range(5)] == list(range(5))
    with pytest.raises(RuntimeError, match="no more coal"):
        next(made)
    assert list(made) == []


def test_a_sampler_that_raises_and_goes_on() -> None:
    class Sampler:
        count = 0

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> int:
            self.count += 1
            if self.count == 3:
                raise KeyError("third")
            if self.count > 6:
                raise StopIteration
            return self.count

    made = window(Manual(1), Sampler(), depth=4)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(KeyError, match="third"):
        next(made)
    assert list(made) == [2, 3, 4]


def test_asks_the_sampler_only_when_a_batch_is_due_without_workers() -> None:
    asked = []

    def sampler() -> Iterator[int]:
        for index in range(3):
            asked.append(index)
            yield index

    made = iter(DataLoader(range(3), batch_size=None, sampler=Asked(sampler)))
    assert asked == []
    assert (next(made), asked) == (0, [0])
    assert (next(made), asked) == (1, [0, 1])


class Asked:
    """A sampler made of a function."""

    def __init__(self, asked: Callable[[], Iterator[int]]) -> None:
        self.asked = asked

    def __iter__(self) -> Iterator[int]:
        return self.asked()


class TestSlowTasks:
    def run(
        self, workers: int, n: int, takes: Callable[[int], float], **policy: Any
    ) -> tuple[Manual, Counters, float]:
        backend, counters = Manual(workers), Counters()
        backend.takes = lambda task: takes(task.step)
        options = {"movable": True, **policy}
        assert list(window(backend, range(n), counters, **options)) == list(range(n))
        return backend, counters, backend.clock.now

    def test_what_waits_behind_one_moves_to_idle_workers(self) -> None:
        backend, counters, _ = self.run(4, 50, lambda step: 10.0 if step == 8 else 0.01)
        assert counters.moved > 0
        assert Counter(step for steps in backend.given for step in steps)[8] == 1
        assert 12 not in backend.finished[: backend.finished.index(9)]
        assert backend.finished.index(12) < backend.finished.index(8)

    def test_the_others_work_on_while_it_runs(self) -> None:
        backend, _, _ = self.run(2, 50, lambda step: 1.0 if step == 4 else 0.1)
        before = backend.finished.index(4)
        assert before >= 8, "twice the window is made meanwhile"

    def test_all_others_stay_with_their_worker(self) -> None:
        backend, _counters, _ = self.run(4, 60, lambda step: 5.0 if step == 8 else 0.01)
        away = [s for w, steps in enumerate(backend.given) for s in steps if s % 4 != w]
        assert away
        assert all(step % 4 == 0 for step in away), "only those behind the slow one may move"

    def test_no_task_is_moved_before_the_threshold(self) -> None:
        slow = SLOW_S * 0.9
        _, counters, _ = self.run(4, 50, lambda step: slow if step % 8 == 0 else 0.001)
        assert counters.moved == 0

    def test_tasks_that_are_all_slow_stay_where_they_are(self) -> None:
        backend, counters, _ = self.run(3, 30, lambda step: 1.0)
        assert counters.moved == 0
        assert backend.given[1] == list(range(1, 30, 3))

    def test_never_where_a_batch_depends_on_its_worker(self) -> None:
        backend, counters, _ = self.run(
            4, 50, lambda step: 10.0 if step == 8 else 0.01, movable=False
        )
        assert counters.moved == 0
        for worker, steps in enumerate(backend.given):
            assert steps == list(range(worker, 50, 4))

    def test_a_worker_that_is_still_starting_keeps_its_tasks(self) -> None:
        """It has not begun any, so none stands behind a slow one."""
        backend, counters = Manual(3), Counters()
        backend.starting = {1}
        backend.takes = lambda task: 20 * SLOW_S if task.step == 1 else 0.01
        assert list(window(backend, range(30), counters, movable=True)) == list(range(30))
        assert counters.moved == 0
        assert set(backend.given[1]) == set(range(1, 30, 3))

    @many
    @given(st.integers(2, 4), st.data())
    def test_order_and_completeness_hold_whatever_is_slow(
        self, workers: int, data: st.DataObject
    ) -> None:
        times = st.sampled_from([0.0, 0.01, SLOW_S, 3 * SLOW_S, 10.0])
        took = data.draw(st.lists(times, max_size=25))
        backend, _, _ = self.run(workers, len(took), lambda step: took[step])
        assert sorted(backend.finished) == list(range(len(took)))


class TestTimeouts:
    def test_count_the_wait_for_one_batch(self) -> None:
        backend = Manual(1)
        backend.takes = lambda task: 9.0
        assert list(window(backend, range(5), timeout_s=10)) == list(range(5))

    def test_name_the_worker_and_what_it_holds(self) -> None:
        backend = Manual(2)
        backend.takes = lambda task: 1000.0 if task.step == 1 else 0.0
        made = window(backend, [[5], [6], [7]], timeout_s=10)
        assert next(made) == 0
        with pytest.raises(WorkerTimeoutError, match=r"timed out after 10 .*worker 1 .*\[6\]"):
            next(made)
        assert backend.clock.now == pytest.approx(10)

    def test_can_be_waited_out(self) -> None:
        backend = Manual(1)
        backend.takes = lambda task: 15.0 if task.step == 0 else 0.0
        made = window(backend, range(2), timeout_s=10)
        with pytest.raises(WorkerTimeoutError):
            next(made)
        assert list(made) == [0, 1]


def test_counts_what_leaves() -> None:
    backend, counters = Manual(2), Counters()
    backend.make = lambda worker, task: Done(task.step, None, 3, 100, 0.5)
    assert len(list(window(backend, range(7), counters))) == 7
    snapshot = counters.snapshot()
    assert (snapshot.batches, snapshot.samples, snapshot.size_bytes) == (7, 21, 700)
    assert snapshot.fetch_s == pytest.approx(3.5)


@pytest.mark.parametrize("in_order", [True, False])
def test_a_fast_consumer_never_has_more_than_the_window_in_flight(in_order: bool) -> None:
    backend = Manual(3)
    made = window(backend, range(100), in_order=in_order, depth=6)
    for _ in range(50):
        next(made)
        assert sum(map(len, backend.queues)) <= 6
