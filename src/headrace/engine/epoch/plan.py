"""How the batches of an epoch are made: the shortest way there is for a loader.

===============  ==============================================================================
gather           columns, gathered in this process a block at a time
gather-thread    the same, one block ahead in a background thread (``num_workers > 0``)
inline           samples, fetched in this process
thread           samples, fetched in threads of this process
process          samples, fetched in worker processes
===============  ==============================================================================
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from headrace.data.shard import shard_of
from headrace.engine.ahead.gather_thread import AHEAD, GatherThread
from headrace.engine.backends.thread import ThreadBackend, ThreadSetup
from headrace.engine.doubt import SETTLED
from headrace.engine.epoch.inline import Inline
from headrace.engine.epoch.options import Options
from headrace.engine.epoch.policy import Policy
from headrace.engine.epoch.same_stream import SameStream
from headrace.engine.epoch.window import Window
from headrace.engine.lease import Pool
from headrace.engine.making.fetch import Fetcher
from headrace.engine.making.gather import BLOCK_BYTES, BlockGather
from headrace.engine.making.recipe import Recipe
from headrace.engine.order.order import Order, Tasks
from headrace.engine.order.state import Progress
from headrace.engine.order.streams import fresh_streams
from headrace.engine.shared import AVAILABLE, Home
from headrace.engine.stats import Counters
from headrace.engine.task import Task
from headrace.notices import warn_user
from headrace.rng import BorrowedGenerators, ProcessGenerators, generator_keys, mix, task_seed
from headrace.tree import leaves

if AVAILABLE:
    from headrace.engine.backends.process import ProcessBackend
    from headrace.engine.backends.worker import Setup


class Plan:
    """Makes the batches of a loader by the shortest way there is.

    ``workers`` are the processes or threads that make them, if there are any.
    """

    def __init__(
        self,
        options: Options,
        pool: Pool,
        home: Home,
        same_stream: SameStream,
        progress: Progress,
    ) -> None:
        self._options = options
        self._pool = pool
        self._home = home
        self._same_stream = same_stream
        self.progress = progress
        self._counters = Counters()
        self._backend: Any = None
        self._source: BlockGather | Window | Inline | None = None
        self._thread: GatherThread | None = None
        self.workers: list[Any] = []

    def begin(self, order: Order | None, progress: Progress, counters: Counters) -> Iterator[Any]:
        """Return the batches of an epoch."""
        self.progress, self._counters = progress, counters
        options = self._options
        gather = self._gather()
        self._source, self._thread = gather, None
        in_workers = options.in_workers
        if gather is not None and order is not None and not progress.ahead:
            if not in_workers:
                self._counters.path = "gather"
                if order.pieces is not None:
                    return gather.ahead(order.pieces)
                # map, not a generator: it goes on after a batch that raised.
                due = functools.partial(gather.due, otherwise=self._fetcher().batch_of)
                return map(due, _Asked(iter(order), counters))
            by_thread = options.backend in ("auto", "thread")
            if options.init_fn is None and by_thread and order.pieces is not None:
                self._counters.path = "gather-thread"
                in_flight = options.prefetch_factor * options.num_workers
                ahead = self._blocks_ahead(order)
                self._thread = GatherThread(gather, order, in_flight, ahead)
                return self._thread
        indices = itertools.repeat(None) if order is None else iter(order)
        tasks = Tasks(
            indices,
            self._task_base(),
            progress.epoch,
            progress.steps,
            after_each=self._note_sampler(),
            ahead=frozenset(progress.ahead),
        )
        if not in_workers:
            self._counters.path = "inline"
        made = self._in_workers(tasks) if in_workers else self._inline(tasks)
        self._source = made
        return made

    def can_go_on(self) -> bool:
        """Say whether another epoch can begin: not after the workers' end, nor in a fork."""
        return self._pool.is_mine() and (self._backend is None or self._backend.is_open())

    def mend(self) -> bool:
        """Make an interrupted step whole again; False where it may be lost."""
        if not self._counters.doubt:
            return True
        whole = self._source if isinstance(self._source, (Window, Inline)) else self._thread
        return whole is not None and whole.mend()

    def peek(self) -> Any:
        """Return the batch that leaves next if it is there already, without taking it."""
        return self._source.peek() if isinstance(self._source, Window) else None

    def last_indices(self) -> list[Any] | None:
        """Return the dataset indices of the batch that was handed out last, where there are any."""
        return None if self._source is None else self._source.last_indices()

    def _inline(self, tasks: Tasks) -> Inline:
        fetcher = self._fetcher()
        policy = self._policy()
        states = self._dataset_states()
        try:
            fetcher.start(task_seed(self._task_base(), self.progress.epoch, None), states[0])
            for number in range(sum(policy.to_replay)):
                with contextlib.suppress(Exception):  # it was raised, or the stream ended, before
                    fetcher.make(None, tasks.seed_of(number))
        except BaseException:
            fetcher.put_back()
            raise
        return Inline(tasks, fetcher, self._counters, policy)

    def _policy(self) -> Policy:
        """Return the window's policy; for the streams of an iterable dataset, where they stand."""
        options, progress = self._options, self.progress
        in_workers = options.in_workers
        iterable = options.recipe.iterable
        workers = options.num_workers if in_workers else 1
        given: tuple[int, ...] = ()
        to_replay: tuple[int, ...] = ()
        if iterable:
            if progress.streams is None:
                divided = options.backend == "thread" and workers > 1
                dataset = None if divided else options.recipe.dataset
                progress.streams = fresh_streams(dataset, workers)
            streams = progress.streams
            given = tuple(stream["batches"] for stream in streams)
            to_replay = tuple(s["batches"] if s["dataset"] is None else 0 for s in streams)
            if any(to_replay):
                _warn_of_replay(options.recipe.dataset, sum(to_replay))
        elif not options.in_order and progress.prefix is None:
            progress.prefix = progress.steps
        return Policy(
            depth=max(1, options.prefetch_factor * workers) if in_workers else 1,
            in_order=options.in_order,
            iterable=iterable,
            movable=not iterable and options.own_rng and options.init_fn is None,
            timeout_s=options.timeout_s,
            restarts=options.restarts,
            given_before=given,
            to_replay=to_replay,
            turn=progress.next_worker,
            on_stream=progress.stream_left if iterable else None,
            on_step=None if progress.prefix is None else progress.left,
            same_stream=self._same_stream if workers > 1 and not any(given) else None,
            ahead_bytes=options.prefetch_bytes,
            max_skipped=options.max_errors,
        )

    def _dataset_states(self) -> list[Any]:
        streams = self.progress.streams
        if streams is None or not self.progress.restored:
            return [None] * max(1, self._options.num_workers)
        return [stream["dataset"] for stream in streams]

    def _task_base(self) -> int:
        """Return the seed that tasks are seeded from: ranks make different random numbers."""
        shard = self._options.shard
        if shard is None or shard.world_size == 1:
            return self.progress.base_seed
        return mix(self.progress.base_seed, shard.rank + 1)

    def _note_sampler(self) -> Callable[[int], None] | None:
        """Return what keeps a stateful sampler's state behind each step it was asked for."""
        progress, counters = self.progress, self._counters
        sampler, states = progress.sampler, progress.sampler_states
        if sampler is None:
            return None

        def note(step: int) -> None:
            states[step] = copy.deepcopy(sampler.state_dict())
            handed_out = progress.steps + counters.position
            if progress.prefix is not None:
                handed_out = progress.prefix
            for old in list(itertools.takewhile(lambda s: s < handed_out - 1, states)):
                del states[old]

        return note

    def _gather(self) -> BlockGather | None:
        recipe, limit = self._options.recipe, self._options.prefetch_bytes
        gatherer = recipe.gatherer() if recipe.transform is None else None
        if gatherer is None:
            return None
        arrays = recipe.makes_arrays
        if limit is None:
            return BlockGather(gatherer, self._pool, self._counters, arrays=arrays)
        blocks = 1 + AHEAD if self._options.in_workers else 1
        block_bytes = min(BLOCK_BYTES, limit // blocks)
        return BlockGather(gatherer, self._pool, self._counters, block_bytes, arrays)

    def _blocks_ahead(self, order: Order) -> int:
        """Return the blocks that may wait: one batch is the least, whatever it weighs."""
        limit = self._options.prefetch_bytes
        if limit is None or order.batch_size is None:
            return AHEAD if limit is None else 1
        gatherer = self._options.recipe.gatherer()
        assert gatherer is not None
        batch_bytes = order.batch_size * sum(leaf.size_bytes for leaf in leaves(gatherer.spec))
        return AHEAD if limit >= (1 + AHEAD) * batch_bytes else 1

    def _fetcher(self) -> Fetcher:
        recipe = self._options.recipe
        seeding = None if recipe.quiet or not self._options.own_rng else borrowed_generators()
        return Fetcher(recipe, self._pool, seeding)

    def _in_workers(self, tasks: Tasks) -> Window:
        in_threads = self._options.backend == "thread"
        self._counters.path = "thread" if in_threads else "process"
        seed = task_seed(self._task_base(), self.progress.epoch, None)
        policy = self._policy()
        if self._backend is not None:
            streams = self.progress.streams
            self._backend.begin_epoch(seed, streams and [s["dataset"] for s in streams])
        elif in_threads:
            states = self._dataset_states()
            self._backend = ThreadBackend(self._thread_setups(), seed, states)
            self.workers = self._backend.threads
        else:
            self._backend = ProcessBackend(self._setups(seed), self._options.context, self._home)
            self.workers = self._backend.processes
        for worker, count in enumerate(policy.to_replay):
            if count:
                self._replay(tasks, worker, count)
        window = Window(tasks, self._backend, self._counters, policy)
        if not in_threads:
            self._backend.start_spare()
        return window

    def _replay(self, tasks: Tasks, worker: int, count: int) -> None:
        empty = Task(self.progress.epoch, -1, None, 0)
        workers = self._options.num_workers
        past = [tasks.of_stream(empty, worker, number, workers) for number in range(count)]
        self._backend.replay(worker, past)

    def _setups(self, seed: int) -> list[Setup]:
        options = self._options
        states = self._dataset_states()
        return [
            Setup(
                worker=worker,
                num_workers=options.num_workers,
                recipe=options.recipe,
                base_seed=self.progress.base_seed,
                epoch_seed=seed,
                init_fn=options.init_fn,
                own_rng=options.own_rng,
                dataset_state=states[worker],
                user_pid=os.getpid(),
                kernel_watches=threading.current_thread() is threading.main_thread(),
            )
            for worker in range(options.num_workers)
        ]

    def _thread_setups(self) -> list[ThreadSetup]:
        options = self._options
        count, divided = options.num_workers, options.recipe.iterable and options.num_workers > 1
        setups = []
        for worker in range(count):
            recipe = options.recipe
            if divided:
                recipe = replace(recipe, dataset=shard_of(recipe.dataset, worker, count))
            setups.append(
                ThreadSetup(
                    worker=worker,
                    num_workers=count,
                    seed=self.progress.base_seed + worker,
                    dataset=recipe.dataset,
                    init_fn=options.init_fn,
                    begin=functools.partial(_begin_fetcher, recipe, self._pool, worker),
                    divided=divided,
                    keys=generator_keys() if options.init_fn and worker == 0 else None,
                )
            )
        return setups

    def close(self) -> None:
        """End the workers."""
        if self._backend is not None:
            self._backend.close()


class _Asked:
    """Asks a sampler, and says that no step is in doubt where that raises: an error of its own."""

    def __init__(self, order: Iterator[Any], counters: Counters) -> None:
        self._order = order
        self._counters = counters

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._order)
        except Exception:
            self._counters.doubt = SETTLED
            raise


def _warn_of_replay(dataset: Any, batches: int) -> None:
    name = type(dataset).__name__
    warn_user(
        f"{name} has no state, so the {batches} batches before this one are made again and thrown "
        f"away to get back to its place. Give it state_dict() and load_state_dict(state) to resume "
        f"at once.",
    )


def _begin_fetcher(recipe: Recipe, pool: Pool, worker: int, seed: int, state: Any) -> Fetcher:
    fetcher = Fetcher(recipe, pool, None, worker)
    fetcher.start(seed, state)
    return fetcher


@functools.cache
def borrowed_generators() -> BorrowedGenerators:
    """Return the seeding of this process's own generators."""
    return BorrowedGenerators(ProcessGenerators())
