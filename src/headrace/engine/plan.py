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

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from typing import Any

import torch

from headrace.collate.stack import is_default
from headrace.data.gather import find_gatherer
from headrace.engine.ahead import GatherThread
from headrace.engine.backends.inline import InlineBackend
from headrace.engine.fetch import Fetcher, Recipe
from headrace.engine.gather import BlockGather
from headrace.engine.lease import Pool
from headrace.engine.order import Order, Tasks
from headrace.engine.shared import AVAILABLE, Home
from headrace.engine.stats import Counters
from headrace.engine.window import Policy, Window
from headrace.rng import ProcessGenerators, TaskGenerators, task_seed

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


class Engine:
    """Makes the batches of a loader, one epoch after the other.

    ``batches`` are those of the present epoch; ``workers`` the processes that make them.
    """

    def __init__(self, options: Options, pool: Pool, home: Home, counters: Counters) -> None:
        self._options = options
        self._pool = pool
        self._home = home
        self._counters = counters
        self._epoch = 0
        self._backend: Any = None
        self.workers: list[Any] = []
        order = self._order()
        draw = torch.empty((), dtype=torch.int64).random_(generator=options.generator)
        self._base_seed = int(draw.item())
        self.batches = self._begin(order)

    def next_epoch(self) -> None:
        """Begin another epoch with the workers there are."""
        self._epoch += 1
        self.batches = self._begin(self._order())

    def _order(self) -> Order | None:
        recipe = self._options.recipe
        if recipe.iterable:
            return None
        return Order(self._options.index_sampler, recipe.auto_collation)

    def _begin(self, order: Order | None) -> Iterator[Any]:
        options = self._options
        gather = self._gather()
        in_workers = options.num_workers > 0 and options.backend != "inline"
        if gather is not None and order is not None:
            if not in_workers:
                self._counters.path = "gather"
                if order.chunks is not None:
                    return gather.ahead(order.chunks, order.batch_size, order.drop_last)
                # map, not a generator: it goes on after a batch that raised.
                return map(partial(gather.due, otherwise=self._fetcher().batch_of), order)
            if options.init_fn is None and options.backend == "auto" and order.chunks is not None:
                self._counters.path = "gather-thread"
                return GatherThread(gather, order)
        indices = itertools.repeat(None) if order is None else iter(order)
        tasks = Tasks(indices, self._base_seed, self._epoch)
        if in_workers:
            return self._in_processes(tasks)
        self._counters.path = "inline"
        fetcher = self._fetcher()
        fetcher.start(task_seed(self._base_seed, self._epoch, None))
        return Window(tasks, InlineBackend(fetcher), self._counters, Policy())

    def _gather(self) -> BlockGather | None:
        recipe = self._options.recipe
        if recipe.iterable or not recipe.auto_collation or not is_default(recipe.collate):
            return None
        gatherer = find_gatherer(recipe.dataset)
        return None if gatherer is None else BlockGather(gatherer, self._pool, self._counters)

    def _fetcher(self) -> Fetcher:
        recipe = self._options.recipe
        seeded = None if recipe.quiet or not self._options.own_rng else _seeded
        return Fetcher(recipe, self._pool, seeded)

    def _in_processes(self, tasks: Tasks) -> Window:
        options = self._options
        self._counters.path = "process"
        seed = task_seed(self._base_seed, self._epoch, None)
        if self._backend is None:
            self._backend = ProcessBackend(self._setups(seed), options.context, self._home)
            self.workers = self._backend.processes
        else:
            self._backend.begin_epoch(seed)
        iterable = options.recipe.iterable
        window = Window(
            tasks,
            self._backend,
            self._counters,
            Policy(
                depth=max(1, options.prefetch_factor * options.num_workers),
                eager=True,
                in_order=options.in_order,
                iterable=iterable,
                movable=not iterable and options.own_rng and options.init_fn is None,
                timeout_s=options.timeout_s,
                restarts=options.restarts,
            ),
        )
        self._backend.start_spare()
        return window

    def _setups(self, seed: int) -> list[Setup]:
        options = self._options
        return [
            Setup(
                worker=worker,
                num_workers=options.num_workers,
                recipe=options.recipe,
                base_seed=self._base_seed,
                epoch_seed=seed,
                init_fn=options.init_fn,
                own_rng=options.own_rng,
                user_pid=os.getpid(),
                kernel_watches=threading.current_thread() is threading.main_thread(),
            )
            for worker in range(options.num_workers)
        ]

    def end_epoch(self) -> None:
        """Called when the batches are used up: workers that do not persist leave."""
        if not self._options.persistent:
            self.close()

    def close(self) -> None:
        """End everything that was started."""
        if self._backend is not None:
            self._backend.close()
        close = getattr(self.batches, "close", None) if hasattr(self, "batches") else None
        if close is not None:
            close()


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
