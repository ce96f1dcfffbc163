"""What the rows share: a work to load, one epoch of it, its costs."""

import gc
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch.utils.data
from torch.utils.data import Dataset

from headrace import DataLoader
from headrace.bench.costs import TreeMemory, tree_cpu_seconds
from headrace.bench.harness import Spread, System, in_turn

OURS = "headrace"
TORCH = "torch loader"
LOADERS: dict[str, Callable[..., Any]] = {OURS: DataLoader, TORCH: torch.utils.data.DataLoader}


@dataclass(frozen=True)
class Work:
    """A dataset, and how many forked workers load it."""

    dataset: Dataset[Any]
    batch_size: int
    workers: int

    def loader(self, system: str, **more: Any) -> Any:
        """Return the loader of ``system`` over this work."""
        return LOADERS[system](
            self.dataset,
            batch_size=self.batch_size,
            num_workers=self.workers,
            multiprocessing_context="fork",
            **more,
        )

    @property
    def ready(self) -> int:
        """How many batches may be ready when the first has been taken, that one counted."""
        return 2 * self.workers + 1


@dataclass(frozen=True)
class Run:
    """One epoch of one system: the wait for the first batch, samples a second afterwards."""

    first_s: float
    rate: float
    cpu_s: float


def run(work: Work, system: str, memory: TreeMemory | None = None) -> Run:
    """Load one epoch, from the workers' start to their end; have ``memory`` look in between."""
    return run_epoch(work, work.loader(system), memory)


def run_epoch(work: Work, loader: Any, memory: TreeMemory | None = None) -> Run:
    """Load an epoch of a loader, whose workers end with it if nobody else holds it."""
    cpu, started = tree_cpu_seconds(), time.perf_counter()
    iterator = iter(loader)
    batch = next(iterator)
    first = time.perf_counter()
    if memory is not None:
        memory.look()
    for _ in range(work.ready - 1):
        batch = next(iterator)
    warm, count = time.perf_counter(), 0
    for batch in iterator:  # noqa: B007
        count += 1
    seconds = time.perf_counter() - warm
    # The workers end with the iterator, and their CPU time is whole when they have ended.
    del batch, iterator, loader
    gc.collect()
    return Run(first - started, count * work.batch_size / seconds, tree_cpu_seconds() - cpu)


def run_both(work: Work, rounds: int) -> dict[str, list[Run]]:
    """Run both loaders in turn."""
    return in_turn({name: partial(run, work, name) for name in LOADERS}, rounds)


def memory_mib(epoch: Callable[[TreeMemory], object]) -> float:
    """Return what ``epoch`` adds to the memory of all processes at its most; it asks for a look."""
    gc.collect()
    with TreeMemory() as memory:
        epoch(memory)
    return memory.added_mib


def system(name: str, figure: Spread, unit: str, runs: list[Run], added_mib: float) -> System:
    """Return a system with its costs."""
    return System(name, figure, unit, median(run.cpu_s for run in runs), added_mib)


def two_bare_loops(samples: int, loop: Callable[[int, Callable[[], object]], object]) -> Run:
    """Time two processes that do nothing but the work, at once.

    ``loop(part, ready)`` does half of the ``samples``, once ``ready()`` has let it.
    """
    fork = multiprocessing.get_context("fork")
    start, end = fork.Barrier(3), fork.Barrier(3)

    def run_part(part: int) -> None:
        loop(part, start.wait)
        end.wait()

    cpu = tree_cpu_seconds()
    processes = [fork.Process(target=run_part, args=(part,), daemon=True) for part in range(2)]
    for process in processes:
        process.start()
    start.wait()
    started = time.perf_counter()
    end.wait()
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    return Run(0.0, samples / seconds, tree_cpu_seconds() - cpu)
