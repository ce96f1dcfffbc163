"""What is in flight, in which order it leaves, and what failure does: once for all backends."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any

from headrace.engine.backends.base import Backend, Died, Finished
from headrace.engine.doubt import BOOKS, SETTLED, WORKERS
from headrace.engine.epoch.policy import Policy, too_many_skipped, without_left_out
from headrace.engine.order.order import Tasks
from headrace.engine.stats import Counters
from headrace.engine.task import Done, Exhausted, Failed, Result, SkippedSample, Task
from headrace.errors import WorkerDiedError, WorkerTimeoutError

# A task that has not been started behind one that runs for longer may move to an idle worker.
SLOW_S = 0.2


class Window:
    """Hands out the batches of a stream of tasks."""

    def __init__(self, tasks: Tasks, backend: Backend, counters: Counters, policy: Policy) -> None:
        self._tasks = tasks
        self._backend = backend
        self._counters = counters
        self._policy = policy
        self._due: deque[Hashable] = deque()  # steps, in the order they leave
        self._ready: dict[Hashable, Result] = {}
        self._given: list[deque[Task]] = [deque() for _ in range(backend.workers)]
        self._since = [0.0] * backend.workers  # when the head of each worker's tasks was begun
        self._active = list(range(backend.workers))
        self._turn = policy.turn
        self._numbers = list(policy.given_before) or [0] * backend.workers
        self._streams: dict[Hashable, int] = {}  # step -> worker
        self._states: list[Any] = [None] * backend.workers  # the dataset's, behind the last batch
        self._done: list[list[Task]] = [[] for _ in range(backend.workers)]  # for replay
        for worker, count in enumerate(policy.to_replay):
            self._done[worker] = [
                tasks.of_stream(Task(0, -1, None, 0), worker, n, backend.workers)
                for n in range(count)
            ]
        self._restarts = 0
        self._failed_samplings = 0
        self._gone: dict[int, Died] = {}  # dead workers that nothing is asked of
        self._asked: dict[Hashable, Task] = {}  # the steps in flight
        self._taken: Done | Failed | None = None  # leaves, once others have been asked for
        self._leaving: Any = None  # indices of the step that leaves
        self._last: Any = None  # of the batch that was handed out last
        self._left_out: tuple[SkippedSample, ...] = ()
        self._broken: Exception | None = None  # what ended the epoch for good
        self._ready_bytes = 0
        # Of the batches so far: what one in flight may come to. None until the first is there.
        self._largest_bytes: int | None = None
        if policy.same_stream is not None:
            policy.same_stream.begin()
        self._top_up(policy.depth)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Return the next batch, or raise what user code raised while making it."""
        while True:
            result = self._leave()
            if result.skipped:
                self._count_skipped(result)
            if result.samples or not result.skipped:
                self._last, self._left_out = self._leaving, result.skipped
                self._counters.add_batch(result.samples, result.size_bytes)
                return result.batch
            self._counters.failed += 1  # all its samples were skipped: there is no batch

    def _leave(self) -> Done:
        """Wait for the result whose turn it is, and ask for others; raise what it raised."""
        self._counters.doubt = SETTLED  # nothing is taken yet
        started = self._counters.clock()
        if self._broken is not None:
            raise self._broken
        if self._due:
            self._backend.check()
        result = self._taken or self._next_result(started)
        self._top_up(self._policy.depth)
        self._counters.doubt = BOOKS
        self._taken = None
        self._counters.wait_s += self._counters.clock() - started
        sampled = result.step >= 0  # else the sampler raised, and there was no step to leave
        if self._policy.on_step is not None and sampled:
            self._policy.on_step(result.step)
        if isinstance(result, Failed):
            self._counters.failed += sampled
            error = result.error
            del result
            self._counters.doubt = SETTLED
            try:
                raise error
            finally:
                del error  # the traceback holds this frame: no circle through it
        self._counters.add_made(result)
        return result

    def _count_skipped(self, result: Done) -> None:
        self._counters.add_skipped(result.skipped)
        limit, count = self._policy.max_skipped, self._counters.skipped_in_epoch
        if limit is None or count <= limit:
            return
        last = result.skipped[-1]
        self._counters.failed += 1
        self._broken = too_many_skipped(count, limit, last)
        self.close()
        raise self._broken from last.exception

    def _next_result(self, started: float) -> Done | Failed:
        """Wait for the result that leaves next; StopIteration when there is none to come."""
        while True:
            result = self._take_ready()
            if isinstance(result, (Done, Failed)):
                return result
            if result is None and not self._due:
                raise StopIteration
            if result is None:
                self._exchange()
                self._wait(started)
            else:  # an iterable dataset ended in one worker: others may have room now
                self._top_up(self._policy.depth)

    def _take_ready(self) -> Result | None:
        if not self._ready:
            return None
        self._counters.doubt = BOOKS
        if self._policy.in_order:
            if self._due[0] not in self._ready:
                return None
            step = self._due.popleft()
        else:
            step = next(iter(self._ready))
            self._due.remove(step)
        result = self._ready.pop(step)
        task = self._asked.pop(step, None)
        self._leaving = None if task is None else task.indices
        if isinstance(result, Done):
            self._ready_bytes -= result.size_bytes
        if self._policy.on_stream is not None:
            worker = self._streams.pop(step)
            if isinstance(result, Done) and self._policy.same_stream is not None:
                self._policy.same_stream.leaves(worker, result.batch, self._backend.workers)
            self._policy.on_stream(worker, result)
        if isinstance(result, (Done, Failed)):
            self._taken = result
        return result

    def peek(self) -> Any:
        """Return the batch that leaves next if it is there already, without taking it."""
        if not self._ready or not self._due:
            return None
        step = self._due[0] if self._policy.in_order else next(iter(self._ready))
        result = self._ready.get(step)
        return result.batch if isinstance(result, Done) else None

    def last_indices(self) -> list[Any] | None:
        """Return the indices of the batch that left last; None for an iterable dataset."""
        return without_left_out(self._last, self._left_out)

    # Submission

    def _top_up(self, depth: int) -> None:
        while len(self._due) < depth and self._active and self._has_room():
            if not self._submit_next(self._next_worker()):
                return

    def _has_room(self) -> bool:
        """Say whether one more batch may be made ahead, in bytes."""
        limit = self._policy.ahead_bytes
        if limit is None or not self._due:
            return True
        if self._largest_bytes is None:
            return False  # the first tells what they weigh
        in_flight = sum(map(len, self._given))
        return self._ready_bytes + in_flight * self._largest_bytes < limit

    def _submit_next(self, worker: int) -> bool:
        """Ask the sampler for a task and give it to ``worker``; say whether there was one."""
        self._counters.doubt = BOOKS
        try:
            task = next(self._tasks, None)
        except Exception as error:  # the sampler's own: it leaves in its turn
            self._failed_samplings += 1
            key = ("sampler", self._failed_samplings)
            self._due.append(key)
            self._ready[key] = Failed(-1, error)
            return False
        if task is None:
            return False
        self._turn = (self._turn + 1) % len(self._active)
        self._due.append(task.step)
        if self._policy.iterable:
            task = self._tasks.of_stream(task, worker, self._numbers[worker], self._backend.workers)
            self._numbers[worker] += 1
            self._streams[task.step] = worker
        self._asked[task.step] = task
        self._exchange()
        self._give(worker, task)
        return True

    def _next_worker(self) -> int:
        """Return whose turn it is: round and round, or whoever has least to do."""
        worker = self._active[self._turn]
        if self._policy.in_order:
            return worker
        turns = self._active[self._turn :] + self._active[: self._turn]
        return min(turns, key=lambda w: len(self._given[w]))

    def _give(self, worker: int, task: Task) -> None:
        if worker in self._gone:
            self._replace(self._gone.pop(worker), [task])
        if not self._given[worker]:
            self._since[worker] = self._counters.clock()
        self._given[worker].append(task)
        self._backend.submit(worker, task)

    # Arrival

    def _wait(self, started: float) -> None:
        """Let one thing happen: a result, a death, a move, or the timeout."""
        limit = self._policy.timeout_s
        left = started + limit - self._counters.clock() if limit else None
        if left is not None and left <= 0:
            error = self._timed_out()
            self._counters.doubt = SETTLED  # it has taken nothing: who is slow may come
            raise error
        patience = self._patience()
        waits = [s for s in (left, patience) if s is not None]
        event = self._backend.get(min(waits) if waits else None)
        if isinstance(event, Finished):
            self._arrived(event)
        elif isinstance(event, Died):
            self._restart(event)
        elif patience is not None:
            self._relieve()

    def _arrived(self, event: Finished) -> None:
        worker, result = event
        task = self._given[worker].popleft()
        self._since[worker] = self._counters.clock()
        self._ready[task.step] = result
        if isinstance(result, Done):
            self._ready_bytes += result.size_bytes
            self._largest_bytes = max(self._largest_bytes or 0, result.size_bytes)
        if self._policy.iterable and isinstance(result, Done) and result.state is not None:
            self._states[worker] = result.state
            self._done[worker].clear()
        elif self._policy.iterable:
            self._done[worker].append(task)
        if isinstance(result, Exhausted) and worker in self._active:
            place = self._active.index(worker)
            self._active.remove(worker)
            if place < self._turn:
                self._turn -= 1
            self._turn = self._turn % len(self._active) if self._active else 0

    # Slow tasks

    def _patience(self) -> float | None:
        """Return how long to wait before work is moved, None where nothing can be."""
        if not self._policy.movable or self._backend.workers < 2:
            return None
        idle = [w for w in self._active if not self._given[w]]
        busy = [w for w in self._active if self._given[w]]
        if not idle or not busy:
            return None
        slowest = min(self._since[w] for w in busy)
        return max(0.0, slowest + SLOW_S - self._counters.clock())

    def _relieve(self) -> None:
        """Give idle workers what waits behind a slow task, and look further ahead for them."""
        now = self._counters.clock()
        slow = [w for w in self._active if self._given[w] and now - self._since[w] >= SLOW_S]
        idle = [w for w in self._active if not self._given[w]]
        waiting: list[Task] = []
        for worker in list(slow):
            taken = self._take_from(worker)
            if self._given[worker]:
                waiting += taken
            else:  # it has begun none of them: it is not slow, it is still starting
                slow.remove(worker)
                for task in taken:
                    self._give(worker, task)
        for task in waiting:
            self._give(self._least_busy(idle), task)
            self._counters.moved += 1
        while len(self._due) < 2 * self._policy.depth and self._has_room():
            free = [w for w in idle if not self._given[w]]
            turn = self._active[self._turn]
            # Only what would have waited behind a slow task goes to another than its own worker.
            if not free or not self._submit_next(free[0] if turn in slow else turn):
                break
        # Look again after as long a time, not at once.
        self._since = [now if w in slow else s for w, s in enumerate(self._since)]

    def _take_from(self, worker: int) -> list[Task]:
        retracted = self._backend.retract(worker)
        # By step: the worker may have taken up a later one while the first were taken back.
        steps = {task.step for task in retracted}
        self._given[worker] = deque(t for t in self._given[worker] if t.step not in steps)
        return retracted

    def _least_busy(self, workers: list[int]) -> int:
        return min(workers, key=lambda w: len(self._given[w]))

    # Interruptions: see headrace.engine.doubt

    def _exchange(self) -> None:
        """Say that from now on only what is under way with the workers is in doubt."""
        self._backend.waiting = False
        self._counters.doubt = WORKERS

    def mend(self) -> bool:
        """Make an interrupted step whole again; False where it may be lost."""
        if self._broken is not None:
            return True  # it says why it cannot go on
        if self._counters.doubt != WORKERS or self._backend.waiting:
            return self._counters.doubt != BOOKS
        if not self._policy.movable:
            return False
        self._backend.renew()
        self._gone.clear()
        for given in self._given:
            given.clear()
        self._ready_bytes = sum(r.size_bytes for r in self._ready.values() if isinstance(r, Done))
        missing = [step for step in self._due if step not in self._ready]
        for number, step in enumerate(missing):
            self._give(number % self._backend.workers, self._asked[step])
        return True

    # Failure

    def _restart(self, died: Died) -> None:
        """Put another worker in the place of a dead one, with its tasks, if there may be one.

        One that had nothing to do is missed only when there is a task for it again.
        """
        tasks = list(self._given[died.worker])
        if not tasks:
            self._gone[died.worker] = died
            return
        self._replace(died, tasks)
        self._given[died.worker].clear()
        for task in tasks:
            self._give(died.worker, task)

    def _replace(self, died: Died, tasks: list[Task]) -> None:
        try:
            if self._restarts >= self._policy.restarts:
                raise WorkerDiedError(self._obituary(died, tasks))
            self._restarts += 1
            self._counters.restarts += 1
            worker = died.worker
            self._backend.replace(worker, self._done[worker], self._states[worker])
        except BaseException as error:  # there is no way on without this worker
            text = str(error) or f"starting a worker again ended in {error!r}"
            self._broken = WorkerDiedError(text)
            self._backend.close()
            raise

    def _obituary(self, died: Died, tasks: list[Task]) -> str:
        held = f"It held the indices {_shorten(tasks[0].indices)}. " if tasks else ""
        if tasks and tasks[0].indices is None:
            held = f"It was making batch {tasks[0].step} of its iterable dataset. "
        allowed = self._policy.restarts
        return (
            f"DataLoader worker (pid(s) {died.pid}) exited unexpectedly: {died.how}. {held}"
            f"worker_restarts={allowed} an epoch are used up. "
            f"Find the cause with num_workers=0, or allow more with worker_restarts="
            f"{max(2 * allowed, 3)}."
        )

    def _timed_out(self) -> WorkerTimeoutError:
        step = self._due[0]
        owner = next(
            (w for w, tasks in enumerate(self._given) if any(t.step == step for t in tasks)), 0
        )
        tasks = self._given[owner]
        at = f" at the indices {_shorten(tasks[0].indices)}" if tasks else ""
        return WorkerTimeoutError(
            f"DataLoader timed out after {self._policy.timeout_s} seconds. It waited for worker "
            f"{owner}{at}: {self._backend.describe(owner)}\n"
            f"If this is slow rather than stuck, allow more: timeout="
            f"{2 * self._policy.timeout_s:g}."
        )

    def close(self) -> None:
        """End what was started."""
        self._backend.close()


def _shorten(indices: Any) -> str:
    if not isinstance(indices, (list, tuple)) or len(indices) <= 16:
        return repr(indices)
    return f"[{', '.join(map(repr, indices[:16]))}, ... {len(indices)} in all]"
