"""How the batches of an epoch are made: the shortest way there is for a loader.

===============  ==============================================================================
gather           columns, gathered in this process a block at a time
gather-thread    the same, one block ahead in a background thread (``num_workers > 0``)
inline           samples, fetched in this process
process          samples, fetched in worker processes
===============  ==============================================================================

What is drawn from generators, and when, is what torch draws: first the sampler is asked for its
iterator, then the base seed is drawn (once, for workers that persist), and orders are drawn when
the first batch is asked for, or when workers are given their first tasks.
"""

from __future__ import annotations

import copy
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from typing import Any

import torch

from headrace.engine.ahead import GatherThread
from headrace.engine.backends.inline import InlineBackend
from headrace.engine.fetch import Fetcher, Recipe
from headrace.engine.gather import BlockGather
from headrace.engine.lease import Pool
from headrace.engine.order import Order, Tasks
from headrace.engine.ranks import agree
from headrace.engine.shared import AVAILABLE, Home
from headrace.engine.state import FINISHED, RUNNING, Progress, check_workers, decode
from headrace.engine.stats import Counters
from headrace.engine.task import Task
from headrace.engine.window import Policy, Window
from headrace.rng import ProcessGenerators, TaskGenerators, mix, task_seed
from headrace.sampling.ranks import Shard

if AVAILABLE:
    from headrace.engine.backends.process import ProcessBackend
    from headrace.engine.worker import Setup


@dataclass(frozen=True)
class Options:
    """What a loader wants of its engine."""

    recipe: Recipe
    index_sampler: Any
    generator: torch.Generator | None
    num_workers: int
    context: Any
    prefetch_factor: int
    in_order: bool
    timeout_s: float
    init_fn: Callable[[int], None] | None
    backend: str
    restarts: int
    own_rng: bool
    persistent: bool
    seed: int | None = None
    shard: Shard | None = None
    dataset_length: int | None = None


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
        self._generator = options.generator or torch.default_generator
        self.progress = Progress(self._generator.get_state(), 0, round=round_number)
        if saved is not None and saved["status"] == RUNNING:
            self.batches = self._resume(saved)
            return
        if saved is not None:
            self._generator.set_state(decode(saved["generator"]))
            self.progress.generator_at_start = self._generator.get_state()
        if saved is not None and saved["status"] == FINISHED and options.persistent:
            self.progress.base_seed, self.progress.epoch = saved["base_seed"], saved["epoch"] + 1
            self.batches = self._begin(self._order())
        else:
            self.batches = self._begin(self._order(first=True))

    def next_epoch(self, counters: Counters, round_number: int) -> None:
        """Begin another epoch with the workers there are."""
        self._counters = counters
        before = self.progress
        self.progress = Progress(
            self._generator.get_state(), before.base_seed, before.epoch + 1, round_number
        )
        self.batches = self._begin(self._order())

    def _resume(self, saved: dict[str, Any]) -> Iterator[Any]:
        """Go on behind the steps of a state, with the generator as it stood when it was saved."""
        progress = self.progress
        progress.base_seed, progress.epoch = saved["base_seed"], saved["epoch"]
        progress.round, progress.steps = saved["round"], saved["steps"]
        progress.generator_at_start = decode(saved["generator_at_start"])
        self._generator.set_state(progress.generator_at_start)
        check_workers(saved, max(1, self._options.num_workers))
        progress.streams, progress.next_worker = saved["streams"], saved["next_worker"]
        order = self._order(first=saved["epoch"] == 0, saved=saved)
        progress.base_seed = saved["base_seed"]
        if self._options.generator is None:
            # One that is the loader's own now stands where the replayed order left it; what was
            # drawn for prefetched batches when the state was taken is drawn again.
            self._generator.set_state(decode(saved["generator"]))
        return self._begin(order)

    def _order(self, first: bool = False, saved: dict[str, Any] | None = None) -> Order | None:
        """Return the order of the epoch; ``first`` draws the base seed, as torch does."""
        options, progress = self._options, self.progress
        sampler, skip = options.index_sampler, progress.steps
        if saved is not None and "sampler_state" in saved:
            _stateful_sampler(sampler).load_state_dict(saved["sampler_state"])
            skip = 0
        seeds = None
        if options.seed is not None or options.shard is not None:
            seeds = self._agree(first)
            progress.base_seed = seeds[0]
            sampler = _with_seed(sampler, seeds[1])
        order = None
        if not options.recipe.iterable:
            shard = options.shard
            order = Order(sampler, options.recipe.auto_collation, skip, shard)
        if first and seeds is None:
            draw = torch.empty((), dtype=torch.int64).random_(generator=options.generator)
            progress.base_seed = int(draw.item())
        if order is not None and saved is not None and (saved["begun"] or skip):
            order.skip()
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
        if options.shard is None:
            return seeds
        facts = {
            "the length of the dataset": options.dataset_length or 0,
            "the global batch": options.shard.global_batch,
            "the position in the epoch": progress.steps,
            "the number of the epoch": progress.round,
        }
        if options.seed is not None:
            facts["seed"] = options.seed
            if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
                return seeds
        return agree((seeds[0], seeds[1]), facts, options.shard.rank, options.shard.world_size)

    def _begin(self, order: Order | None) -> Iterator[Any]:
        options, progress = self._options, self.progress
        gather = self._gather()
        in_workers = options.num_workers > 0 and options.backend != "inline"
        if gather is not None and order is not None:
            if not in_workers:
                self._counters.path = "gather"
                if order.chunks is not None:
                    return gather.ahead(order.chunks, order.batch_size, order.drop_last)
                progress.live_sampler = _stateful_sampler(options.index_sampler)
                # map, not a generator: it goes on after a batch that raised.
                return map(partial(gather.due, otherwise=self._fetcher().batch_of), order)
            if options.init_fn is None and options.backend == "auto" and order.chunks is not None:
                self._counters.path = "gather-thread"
                return GatherThread(gather, order)
        indices = itertools.repeat(None) if order is None else iter(order)
        tasks = Tasks(
            indices, self._task_base(), progress.epoch, progress.steps, self._note_sampler()
        )
        if in_workers:
            return self._in_processes(tasks)
        self._counters.path = "inline"
        return self._inline(tasks)

    def _inline(self, tasks: Tasks) -> Window:
        fetcher = self._fetcher()
        policy = self._policy()
        states = self._dataset_states()
        fetcher.start(task_seed(self._task_base(), self.progress.epoch, None), states[0])
        if states[0] is None:
            for number in range(sum(policy.given_before)):
                fetcher(tasks.of_stream(Task(self.progress.epoch, -1, None, 0), 0, number, 1))
        return Window(tasks, InlineBackend(fetcher), self._counters, policy)

    def _policy(self) -> Policy:
        """Return the window's policy; for the streams of an iterable dataset, where they stand."""
        options, progress = self._options, self.progress
        processes = options.num_workers > 0 and options.backend != "inline"
        iterable = options.recipe.iterable
        workers = options.num_workers if processes else 1
        given: tuple[int, ...] = ()
        if iterable:
            if progress.streams is None:
                progress.streams = [{"batches": 0, "dataset": None} for _ in range(workers)]
            given = tuple(stream["batches"] for stream in progress.streams)
            if any(s["batches"] and s["dataset"] is None for s in progress.streams):
                _warn_of_replay(options.recipe.dataset, sum(given))
        return Policy(
            depth=max(1, options.prefetch_factor * workers) if processes else 1,
            eager=processes,
            in_order=options.in_order,
            iterable=iterable,
            movable=not iterable and options.own_rng and options.init_fn is None,
            timeout_s=options.timeout_s,
            restarts=options.restarts,
            given_before=given,
            turn=progress.next_worker,
            on_stream=self._stream_left if iterable else None,
        )

    def _stream_left(self, worker: int, state: Any) -> None:
        assert self.progress.streams is not None
        stream = self.progress.streams[worker]
        stream["batches"] += 1
        stream["dataset"] = state
        self.progress.next_worker = (worker + 1) % len(self.progress.streams)

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
        sampler = _stateful_sampler(self._options.index_sampler)
        if sampler is None:
            return None
        states = self.progress.sampler_states
        keep = 4 * max(1, self._options.num_workers * self._options.prefetch_factor) + 16

        def note(step: int) -> None:
            states[step] = copy.deepcopy(sampler.state_dict())
            states.pop(step - keep, None)

        return note

    def _gather(self) -> BlockGather | None:
        recipe = self._options.recipe
        gatherer = recipe.gatherer() if recipe.transform is None else None
        return None if gatherer is None else BlockGather(gatherer, self._pool, self._counters)

    def _fetcher(self) -> Fetcher:
        recipe = self._options.recipe
        seeded = None if recipe.quiet or not self._options.own_rng else _seeded
        return Fetcher(recipe, self._pool, seeded)

    def _in_processes(self, tasks: Tasks) -> Window:
        options = self._options
        self._counters.path = "process"
        seed = task_seed(self._task_base(), self.progress.epoch, None)
        policy = self._policy()
        if self._backend is None:
            self._backend = ProcessBackend(self._setups(seed), options.context, self._home)
            self.workers = self._backend.processes
        else:
            self._backend.begin_epoch(seed)
        if any(policy.given_before):
            for worker, state in enumerate(self._dataset_states()):
                if state is None:
                    self._replay(tasks, worker, policy.given_before[worker])
        window = Window(tasks, self._backend, self._counters, policy)
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


def _stateful_sampler(index_sampler: Any) -> Any:
    """Return the sampler that can say where it stands: the batch sampler, or the one inside."""
    for sampler in (index_sampler, getattr(index_sampler, "sampler", None)):
        if hasattr(sampler, "state_dict") and hasattr(sampler, "load_state_dict"):
            return sampler
    return None


def _with_seed(index_sampler: Any, seed: int) -> Any:
    """Return a copy of a sampler that draws from a generator of its own, seeded so."""
    copied = copy.copy(index_sampler)
    if hasattr(copied, "sampler"):
        copied.sampler = _with_seed(copied.sampler, seed)
    elif hasattr(copied, "generator"):
        copied.generator = torch.Generator().manual_seed(seed)
    return copied


def _warn_of_replay(dataset: Any, batches: int) -> None:
    name = type(dataset).__name__
    warnings.warn(
        f"{name} has no state, so the {batches} batches before this one are made again and thrown "
        f"away to get back to its place. Give it state_dict() and load_state_dict(state) to resume "
        f"at once.",
        stacklevel=8,
    )


def worker_context(given: Any) -> Any:
    """Return the multiprocessing context for workers, with its forkserver told what to import."""
    context = torch.multiprocessing.get_context() if given is None else given
    if context.get_start_method() == "forkserver":
        wanted = ["__main__", "torch", "headrace"]
        modules = [*forkserver._forkserver._preload_modules]  # type: ignore[attr-defined]
        context.set_forkserver_preload(modules + [m for m in wanted if m not in modules])
    return context


_generators: ProcessGenerators | None = None


def _seeded(seed: int) -> TaskGenerators:
    global _generators
    if _generators is None:
        _generators = ProcessGenerators()
    return TaskGenerators(_generators, seed)
