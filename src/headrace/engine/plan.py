"""How the batches of an epoch are made: the shortest way there is for a loader.

===============  ==============================================================================
gather           columns, gathered in this process a block at a time
gather-thread    the same, one block ahead in a background thread (``num_workers > 0``)
inline           samples, fetched in this process
thread           samples, fetched in threads of this process
process          samples, fetched in worker processes
===============  ==============================================================================

What is drawn from generators, and when, is what torch draws: first the sampler is asked for its
iterator, then the base seed is drawn (once, for workers that persist), and orders are drawn when
the first batch is asked for, or when workers are given their first tasks.
"""

from __future__ import annotations

import copy
import functools
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from zlib import crc32

import torch

from headrace.data.shard import shard_of
from headrace.engine.ahead import GatherThread
from headrace.engine.backends.inline import InlineBackend
from headrace.engine.backends.thread import ThreadBackend, ThreadSetup
from headrace.engine.fetch import Fetcher, Recipe
from headrace.engine.gather import BlockGather
from headrace.engine.lease import Pool
from headrace.engine.options import Options
from headrace.engine.order import Order, Tasks
from headrace.engine.packing import decode
from headrace.engine.ranks import agree
from headrace.engine.samplers import load_at_end, stateful, with_seed
from headrace.engine.shared import AVAILABLE, Home
from headrace.engine.state import FINISHED, RUNNING, Progress
from headrace.engine.stats import Counters
from headrace.engine.task import Task
from headrace.engine.window import Policy, Window
from headrace.rng import BorrowedGenerators, ProcessGenerators, mix, task_seed

if AVAILABLE:
    from headrace.engine.backends.process import ProcessBackend
    from headrace.engine.worker import Setup


class Engine:
    """Makes the batches of a loader, one epoch after the other.

    ``batches`` are those of the present epoch; ``workers`` the processes that make them.
    """

    def __init__(
        self,
        options: Options,
        pool: Pool,
        home: Home,
        counters: Counters,
        *,
        round_number: int = 0,
        saved: dict[str, Any] | None = None,
    ) -> None:
        self._options = options
        self._pool = pool
        self._home = home
        self._counters = counters
        self._backend: Any = None
        self.workers: list[Any] = []
        self._generators = options.generators
        self.progress = self._new_progress(0, round_number)
        if saved is not None and saved["status"] == RUNNING:
            self.batches = self._resume(saved)
        elif saved is not None and saved["status"] == FINISHED and options.persistent:
            self.progress.base_seed, self.progress.epoch = saved["base_seed"], saved["epoch"] + 1
            self.batches = self._begin(self._order(saved=saved))
        else:
            self.batches = self._begin(self._order(first=True, saved=saved))

    def _new_progress(self, base_seed: int, round_number: int, epoch: int = 0) -> Progress:
        states = [generator.get_state() for generator in self._generators]
        return Progress(states, base_seed, epoch, round_number)

    @property
    def position(self) -> int:
        """Return the steps of this epoch that have left, through this engine."""
        return self._counters.position

    def next_epoch(self, counters: Counters, round_number: int) -> None:
        """Begin another epoch with the workers there are."""
        self._counters = counters
        before = self.progress
        self.progress = self._new_progress(before.base_seed, round_number, before.epoch + 1)
        self.batches = self._begin(self._order())

    def _resume(self, saved: dict[str, Any]) -> Iterator[Any]:
        """Go on behind the steps of a state, with the generators as they stood when it was saved.

        The order is drawn again from the generators as they stood when the epoch began. A known
        sampler leaves one of its own where this epoch's orders need it; torch's default one, which
        others draw from too, and whatever a custom sampler draws from, are put back.
        """
        progress = self.progress
        progress.epoch, progress.round = saved["epoch"], saved["round"]
        progress.base_seed, progress.order_seed = saved["base_seed"], saved["order_seed"]
        progress.steps, progress.start = saved["steps"], saved["samples"] or 0
        progress.streams, progress.next_worker = saved["streams"], saved["next_worker"]
        if saved["ahead"]:
            progress.prefix, progress.ahead = saved["steps"], set(saved["ahead"])
        progress.generators_at_start = [decode(text) for text in saved["generators_at_start"]]
        for generator, state in zip(self._generators, progress.generators_at_start, strict=True):
            generator.set_state(state)
        order = self._order(first=saved["epoch"] == 0, saved=saved)
        progress.base_seed = saved["base_seed"]
        if order is not None and (saved["begun"] or saved["steps"]):
            order.go_on()
        if order is not None and saved["drawn"] and self._options.shard is None:
            self._replay_sampler(order, saved)
        known = order is not None and order.chunks is not None
        for generator, text in zip(self._generators, saved["generators"], strict=True):
            if not known or generator is torch.default_generator:
                generator.set_state(decode(text))
        return self._begin(order)

    def _replay_sampler(self, order: Order, saved: dict[str, Any]) -> None:
        """Bring a custom sampler to where it was; one that knows its place is there already."""
        if self.progress.sampler is None or "sampler_state" not in saved:
            order.replay(max(saved["drawn"], saved["steps"]), saved["steps"])
            return
        if self._all_given(saved):
            order.end()
        else:
            order.replay(1, 0)  # for what it draws with its first batch
        order.drawn += saved["steps"]

    def _all_given(self, saved: dict[str, Any]) -> bool:
        """Whether a state was taken behind the last sample, where a sampler may have begun anew."""
        if saved["status"] == FINISHED:
            return True
        return saved["samples"] is not None and saved["samples"] == self._options.order_length()

    def _order(self, first: bool = False, saved: dict[str, Any] | None = None) -> Order | None:
        """Return the order of the epoch; ``first`` draws the base seed, as torch does."""
        options, progress = self._options, self.progress
        sampler = options.index_sampler
        progress.sampler = stateful(sampler) if options.shard is None else None
        if progress.sampler is not None and saved is not None and "sampler_state" in saved:
            progress.sampler_states[progress.steps - 1] = saved["sampler_state"]
            if self._all_given(saved):
                load_at_end(sampler, saved["sampler_state"], self._generators)
            else:
                progress.sampler.load_state_dict(copy.deepcopy(saved["sampler_state"]))
        seeds = None
        if options.seed is not None or options.shard is not None:
            seeds = self._agree(first)
            progress.base_seed, progress.order_seed = seeds
            sampler = with_seed(sampler, seeds[1])
        order = None
        if not options.recipe.iterable:
            start = progress.start
            order = Order(sampler, options.recipe.auto_collation, start, options.shard)
        if first and seeds is None:
            draw = torch.empty((), dtype=torch.int64).random_(generator=options.generator)
            progress.base_seed = int(draw.item())
        progress.order = order
        return order

    def _agree(self, first: bool) -> list[int]:
        """Return the base seed and the order's seed that all ranks use."""
        options, progress = self._options, self.progress
        if options.seed is not None:
            seeds = [mix(options.seed, progress.round, n) >> 1 for n in (1, 2)]
        else:
            draws = torch.empty(2, dtype=torch.int64).random_(generator=options.generator)
            seeds = draws.tolist()
            if not first:
                seeds[0] = progress.base_seed
        if progress.order_seed is not None:  # of a state, whichever rank saved it
            seeds = [progress.base_seed, progress.order_seed]
        if options.shard is None:
            return seeds
        if options.seed is not None and not (
            torch.distributed.is_available() and torch.distributed.is_initialized()
        ):
            return seeds
        facts = {
            "the length of the dataset": options.dataset_length or 0,
            "the length of the order": options.order_length() or 0,
            "the global batch": options.shard.global_batch,
            "uneven= (a checksum)": crc32(options.shard.uneven.encode()),
            "drop_last": int(options.shard.drop_last),
            "the kind of sampler (a checksum)": crc32(options.order_name.encode()),
            "the position in the epoch": progress.start,
            "the number of the epoch": progress.round,
            "seed= (-1 for none)": -1 if options.seed is None else options.seed % 2**63,
        }
        return agree((seeds[0], seeds[1]), facts, options.shard.rank, options.shard.world_size)

    def _begin(self, order: Order | None) -> Iterator[Any]:
        options, progress = self._options, self.progress
        gather = self._gather()
        in_workers = options.in_workers
        if gather is not None and order is not None and not progress.ahead:
            if not in_workers:
                self._counters.path = "gather"
                if order.chunks is not None:
                    return gather.ahead(order.chunks, order.batch_size, order.drop_last)
                # map, not a generator: it goes on after a batch that raised.
                return map(functools.partial(gather.due, otherwise=self._fetcher().batch_of), order)
            by_thread = options.backend in ("auto", "thread")
            if options.init_fn is None and by_thread and order.chunks is not None:
                self._counters.path = "gather-thread"
                return GatherThread(gather, order)
        indices = itertools.repeat(None) if order is None else iter(order)
        tasks = Tasks(
            indices,
            self._task_base(),
            progress.epoch,
            progress.steps,
            after_each=self._note_sampler(),
            ahead=frozenset(progress.ahead),
        )
        if in_workers:
            return self._in_workers(tasks)
        self._counters.path = "inline"
        return self._inline(tasks)

    def _inline(self, tasks: Tasks) -> Window:
        fetcher = self._fetcher()
        policy = self._policy()
        states = self._dataset_states()
        fetcher.start(task_seed(self._task_base(), self.progress.epoch, None), states[0])
        for number in range(sum(policy.to_replay)):
            fetcher(tasks.of_stream(Task(self.progress.epoch, -1, None, 0), 0, number, 1))
        return Window(tasks, InlineBackend(fetcher), self._counters, policy)

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
                progress.streams = [{"batches": 0, "dataset": None} for _ in range(workers)]
            streams = progress.streams
            given = tuple(stream["batches"] for stream in streams)
            to_replay = tuple(s["batches"] if s["dataset"] is None else 0 for s in streams)
            if any(to_replay):
                _warn_of_replay(options.recipe.dataset, sum(to_replay))
        elif not options.in_order and progress.prefix is None:
            progress.prefix = progress.steps
        return Policy(
            depth=max(1, options.prefetch_factor * workers) if in_workers else 1,
            eager=in_workers,
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
            same_stream=self._home.same_stream if workers > 1 and not any(given) else None,
        )

    def _dataset_states(self) -> list[Any]:
        streams = self.progress.streams
        if streams is None:
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
        recipe = self._options.recipe
        gatherer = recipe.gatherer() if recipe.transform is None else None
        return None if gatherer is None else BlockGather(gatherer, self._pool, self._counters)

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
            self._backend.begin_epoch(seed)
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
                )
            )
        return setups

    def end_epoch(self) -> None:
        """Called when the batches are used up: workers that do not persist leave."""
        self.progress.finished = True
        if not self._options.persistent:
            self.close()

    def close(self) -> None:
        """End everything that was started."""
        if self._backend is not None:
            self._backend.close()
        close = getattr(self.batches, "close", None) if hasattr(self, "batches") else None
        if close is not None:
            close()


def _warn_of_replay(dataset: Any, batches: int) -> None:
    name = type(dataset).__name__
    warnings.warn(
        f"{name} has no state, so the {batches} batches before this one are made again and thrown "
        f"away to get back to its place. Give it state_dict() and load_state_dict(state) to resume "
        f"at once.",
        stacklevel=11,  # the line that calls iter(loader)
    )


def _begin_fetcher(recipe: Recipe, pool: Pool, worker: int, seed: int, state: Any) -> Fetcher:
    fetcher = Fetcher(recipe, pool, None, worker)
    fetcher.start(seed, state)
    return fetcher


@functools.cache
def borrowed_generators() -> BorrowedGenerators:
    """Return the seeding of this process's own generators."""
    return BorrowedGenerators(ProcessGenerators())
