"""``num_workers="auto"``: a few batches are made and timed, and the cheapest way is taken.

What is measured: seconds a batch, how many of them are computing rather than waiting, and how much
of the computing holds the interpreter's lock. From that follows what an epoch would take in this
thread, in threads and in processes. Nothing of the loader's order or random numbers is used up.
"""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset

from headrace.engine.lease import Pool
from headrace.engine.making.fetch import Fetcher
from headrace.engine.making.recipe import Recipe
from headrace.engine.stats import in_units
from headrace.engine.task import Done, Failed, Task
from headrace.machine import available_cores
from headrace.rng import BorrowedGenerators, ProcessGenerators, mix

MEASURE_S = 0.25  # for timing batches, and as much again for the lock
_MOST_BATCHES = 32
_PROCESS_START_S = 0.06  # to fork and to end one, with torch loaded
_IMPORT_S = 2.0  # for processes that are not forked, and import torch first
_PROCESS_BATCH_S = 250e-6  # to send a task, and to pack and unpack its batch
_THREAD_BATCH_S = 60e-6
_CONTENTION = 1.15  # threads that wait for the lock take longer than the lock's share alone
_WORTH_IT = 0.93  # workers are taken for a gain, and threads instead of processes too


class Choice(NamedTuple):
    """Who makes the batches, and why."""

    backend: str
    num_workers: int
    why: str


class Cost(NamedTuple):
    """What a batch takes: seconds, those of them spent computing, those under the lock."""

    batch_s: float
    cpu_s: float
    lock_s: float
    size_bytes: int
    draws: bool


def choose(
    recipe: Recipe,
    batches: Callable[[], Iterator[Any]],
    length: int | None,
    allowed: str,
    init_fn: Callable[[int], None] | None = None,
    *,
    forked: bool = True,
) -> Choice:
    """Return who shall make the batches.

    ``batches`` gives index batches to try, ``length`` is the number of batches of an epoch, where
    it is known, and ``allowed`` the loader's ``backend=``; ``forked`` says how processes start.
    """
    cores = max(1, int(available_cores()))
    if allowed == "inline":
        return Choice(allowed, 0, "backend='inline' leaves no choice")
    if init_fn is not None:
        kind = "thread" if allowed == "thread" else "process"
        return Choice(kind, cores, f"worker_init_fn needs workers: one {kind} for each core")
    if recipe.gatherer() is not None and recipe.transform is None and allowed == "auto":
        return Choice("auto", 0, "columns are gathered in this thread: no worker is faster")
    try:
        cost = measure(recipe, batches)
    except Exception as error:
        why = f"a batch could not be made to be timed ({type(error).__name__}: {error})"
        return Choice("auto", 0, f"{why}, so batches are made in this thread")
    if recipe.iterable:
        cores = 1  # more would each need to know their part of the stream
    return decide(cost, cores, length, allowed, forked=forked)


def trial_batches(dataset: Any, size: int | None) -> Iterator[Any]:
    """Yield index batches from all over a map-style dataset; single indices if ``size`` is None."""
    generator = np.random.default_rng(0)
    if isinstance(dataset, IterableDataset):
        yield from itertools.repeat(None)
    while True:
        indices = generator.integers(len(dataset), size=size or 1).tolist()
        yield indices[0] if size is None else indices


def decide(
    cost: Cost, cores: int, length: int | None, allowed: str, *, forked: bool = True
) -> Choice:
    """Return the cheapest way for batches of a known cost."""
    batches = 10_000 if length is None else length
    inline = batches * cost.batch_s
    start_s = _PROCESS_START_S * cores + (0.0 if forked else _IMPORT_S)
    process = batches * (cost.batch_s + _PROCESS_BATCH_S) / cores + start_s
    lock_s = cost.lock_s if cores == 1 else cost.lock_s * _CONTENTION
    thread = batches * (max(lock_s, cost.batch_s / cores) + _THREAD_BATCH_S)
    told = (
        f"a batch of {in_units(cost.size_bytes)} takes {cost.batch_s * 1e3:.3g} ms, "
        f"{_share(cost.cpu_s, cost.batch_s)} of it computing and "
        f"{_share(cost.lock_s, cost.batch_s)} under the interpreter's lock; an epoch would take "
        f"{inline:.2g} s in this thread, {thread:.2g} s in {cores} threads, {process:.2g} s in "
        f"{cores} processes"
    )
    best, seconds = "inline", inline
    if allowed in ("auto", "process") and process < _WORTH_IT * seconds:
        best, seconds = "process", process
    # Threads share the dataset, and the random generators: only for a clear gain.
    may_thread = allowed == "thread" or (allowed == "auto" and not cost.draws)
    if may_thread and thread < _WORTH_IT * seconds:
        best, seconds = "thread", thread
    if cost.draws and allowed == "auto":
        told += "; threads are out, as random numbers are drawn from the process's generators"
    if best == "inline":
        return Choice("auto" if allowed == "auto" else "inline", 0, f"{told}: in this thread")
    kind = "processes" if best == "process" else "threads"
    return Choice(best, cores, f"{told}: {cores} {kind}")


def measure(recipe: Recipe, batches: Callable[[], Iterator[Any]]) -> Cost:
    """Make batches for a moment, alone and beside a thread that only computes.

    Raises:
        Exception: what user code raises.
    """
    if recipe.iterable:
        recipe = replace(recipe, dataset=copy.deepcopy(recipe.dataset))
    trial = _Trial(recipe, batches)
    trial.run(MEASURE_S)
    timed = trial.walls[1:] or trial.walls  # the first opens files and imports
    batch_s = median(timed)
    cpu_s = min(batch_s, median(trial.cpus[1:] or trial.cpus))
    lock_s = min(cpu_s, batch_s * _share_of_lock(trial))
    return Cost(batch_s, cpu_s, lock_s, trial.size_bytes, trial.draws)


class _Trial:
    """Makes batches that nobody gets, and times them."""

    def __init__(self, recipe: Recipe, batches: Callable[[], Iterator[Any]]) -> None:
        self._batches = batches
        self._indices = batches()
        self._generators = ProcessGenerators()
        self._seeding = BorrowedGenerators(self._generators)
        self._fetcher = Fetcher(recipe, Pool(), None)
        self._step = 0
        self.walls: list[float] = []
        self.cpus: list[float] = []
        self.beside_s = 0.0  # seconds of batches that were made beside a counter
        self.counted = 0  # how far it got in them
        self.size_bytes = 0
        self.draws = False
        saved = self._seeding.save()
        try:
            self._seeding.begin(0)
            self._fetcher.start(0)
        finally:
            self._seeding.end(saved)

    def run(self, limit_s: float, beside: _Counter | None = None) -> None:
        """Make batches until the time is over, one at least."""
        deadline = time.perf_counter() + limit_s
        for _ in range(_MOST_BATCHES):
            if not self._one(beside) or time.perf_counter() >= deadline:
                return

    def _one(self, beside: _Counter | None) -> bool:
        indices = next(self._indices, None)
        if indices is None:
            self._indices = self._batches()
            indices = next(self._indices)
        task = Task(0, self._step, indices, mix(self._step))
        self._step += 1
        saved = self._seeding.save()
        try:
            self._seeding.begin(task.seed)
            before = self._generators.save()
            if beside is None:
                wall, cpu = _own_time(), time.thread_time()
                result = self._fetcher(task)
                self.walls.append(_own_time() - wall)
                self.cpus.append(time.thread_time() - cpu)
            else:  # nothing here may let go of the lock but the batch itself
                counted, wall = beside.count, time.perf_counter()
                result = self._fetcher(task)
                self.beside_s += time.perf_counter() - wall
                self.counted += beside.count - counted
            self.draws = self.draws or not _same(before, self._generators.save())
        finally:
            self._seeding.end(saved)
        if isinstance(result, Failed):
            raise result.error
        if not isinstance(result, Done):
            return False  # an iterable dataset has ended
        self.size_bytes = max(self.size_bytes, result.size_bytes)
        return True


def _own_time() -> float:
    """Return a clock, in seconds, that stands still while other programs have the core."""
    try:
        waited_ns = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        waited_ns = 0
    return time.perf_counter() - waited_ns * 1e-9


def _same(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return pickle.dumps(before) == pickle.dumps(after)  # whatever the states are made of


def _share_of_lock(trial: _Trial) -> float:
    """Return the share of a batch's time in which no other thread could run Python.

    A thread that does nothing but count is slowed down by what holds the lock: two threads that
    both want it all the time get half of it each.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return 0.0
    alone = _Counter()
    time.sleep(0.03)
    rate_alone = alone.stop()
    beside = _Counter()
    trial.run(MEASURE_S, beside)
    beside.stop()
    rate = trial.counted / max(trial.beside_s * rate_alone, 1.0)
    return float(np.clip(2 * (1 - rate), 0.0, 1.0))


class _Counter:
    """A thread that counts as fast as it can."""

    def __init__(self) -> None:
        self.count = 0
        self._going = True
        self._started = time.perf_counter()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._going:
            self.count += 1

    def stop(self) -> float:
        """Return how often it counted in a second."""
        count, seconds = self.count, time.perf_counter() - self._started
        self._going = False
        self._thread.join()
        return count / seconds


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole if whole else 0:.0f} %"
