"""How long the first batch takes: of forked workers, of a forkserver's, of a second epoch."""

import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from headrace.bench.costs import TreeMemory, tree_cpu_seconds
from headrace.bench.datasets import Numbers, PythonWork
from headrace.bench.harness import Row, Say, Size, System, at_most, in_turn, ratios, spread
from headrace.bench.workers.work import (
    LOADERS,
    OURS,
    TORCH,
    Run,
    Work,
    memory_mib,
    run,
    run_both,
    system,
)


def first_forked(size: Size, say: Say) -> Row:
    """Measure iter() and the first batch of two forked workers."""
    say("first batch of 2 forked workers")
    work = Work(Numbers(320), 32, 2)
    # A start takes milliseconds: more rounds cost little, and a start varies more than an epoch.
    runs = run_both(work, size.choose(3 * size.rounds, size.rounds))
    first_ms = {name: [run.first_s * 1e3 for run in runs[name]] for name in LOADERS}
    return Row(
        work="first batch, 2 forked workers",
        figure="time from iter(), headrace / torch loader",
        value=ratios(first_ms[OURS], first_ms[TORCH]),
        unit="x",
        target=at_most(1.0),
        systems=tuple(
            system(
                name, spread(first_ms[name]), "ms", runs[name], memory_mib(partial(run, work, name))
            )
            for name in LOADERS
        ),
    )


@dataclass(frozen=True)
class Start:
    """One start of a forkserver's workers, with what the whole short epoch cost."""

    first_s: float
    cpu_s: float
    added_mib: float


def first_of_many_forkserver(size: Size, say: Say) -> Row:
    """Measure the first batch of 8 forkserver workers against that of one."""
    many, rounds = size.choose(8, 2), size.choose(3, 1)
    # torch's workers import torch, each for itself: seconds that a quick run does not have.
    names = [OURS] if size.quick else list(LOADERS)
    starts: dict[str, dict[int, list[Start]]] = {name: {1: [], many: []} for name in names}
    with ExitStack() as stack:
        # A process has one forkserver, and one list of what that has imported: each loader gets a
        # process of its own.
        homes = {name: stack.enter_context(_fresh_process()) for name in names}
        for name, home in homes.items():
            say(f"starting the forkserver of {name}")
            home.submit(forkserver_start, name, 1).result()
        for number in range(rounds):
            for name, home in homes.items():
                for workers, measured in starts[name].items():
                    say(f"first batch of {workers} forkserver workers, round {number + 1}, {name}")
                    measured.append(home.submit(forkserver_start, name, workers).result())
    growth = {name: ratios(_first_ms(of[many]), _first_ms(of[1])) for name, of in starts.items()}
    notes = [
        f"{name} {growth[name].median:.3g} x, with 1 worker {median(_first_ms(of[1])):.0f} ms"
        for name, of in starts.items()
    ]
    return Row(
        work=f"first batch, {many} forkserver workers",
        figure="time from iter(), headrace / headrace with 1 worker",
        value=growth[OURS],
        unit="x",
        target=at_most(2.0),
        systems=tuple(_start_system(name, of[many]) for name, of in starts.items()),
        note="; ".join([*notes, "the server runs already"]),
    )


def _fresh_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def forkserver_start(name: str, workers: int) -> Start:
    """Load a short epoch with a forkserver's workers; run in a process of its own."""
    warnings.filterwarnings("ignore", "This DataLoader will create")
    loader = LOADERS[name](
        Numbers(workers * 64),
        batch_size=32,
        num_workers=workers,
        multiprocessing_context="forkserver",
    )
    cpu = tree_cpu_seconds()
    with TreeMemory() as memory:
        started = time.perf_counter()
        iterator = iter(loader)
        next(iterator)
        first_s = time.perf_counter() - started
        memory.look()
        for _ in iterator:
            pass
        del iterator
        cpu_s = tree_cpu_seconds() - cpu
    return Start(first_s, cpu_s, memory.added_mib)


def _first_ms(starts: list[Start]) -> list[float]:
    return [start.first_s * 1e3 for start in starts]


def _start_system(name: str, starts: list[Start]) -> System:
    return System(
        name,
        spread(_first_ms(starts)),
        "ms",
        median(start.cpu_s for start in starts),
        max(start.added_mib for start in starts),
    )


def second_epoch(size: Size, say: Say) -> Row:
    """Measure the first batch of later epochs of persistent workers against a median batch."""
    say("first batch of epoch 2, persistent workers")
    work = Work(PythonWork.lasting(150e-6, 32 * size.choose(60, 8)), 32, 2)
    cpu: dict[str, float] = {}
    epochs: dict[str, list[_Epoch]] = {}
    loaders = {name: work.loader(name, persistent_workers=True) for name in LOADERS}
    for name, loader in loaders.items():
        before = tree_cpu_seconds()
        _epoch(loader, work.workers)
        cpu[name] = tree_cpu_seconds() - before
    epochs = in_turn(
        {name: partial(_epoch, loader, work.workers) for name, loader in loaders.items()},
        size.rounds,
    )
    del loaders
    shares = {name: spread([e.first_s / e.batch_s for e in of]) for name, of in epochs.items()}
    return Row(
        work="first batch of epoch 2, 2 persistent workers",
        figure="time from iter(), headrace / its median batch",
        value=shares[OURS],
        unit="x",
        target=at_most(2.0),
        systems=tuple(
            system(
                name,
                spread([epoch.first_s * 1e3 for epoch in of]),
                "ms",
                [Run(0.0, 0.0, cpu[name])],
                memory_mib(partial(run, work, name)),
            )
            for name, of in epochs.items()
        ),
        note=f"a batch is the time that a worker needs for one, here "
        f"{median(epoch.batch_s for epoch in epochs[OURS]) * 1e3:.2g} ms; "
        f"torch loader {shares[TORCH].median:.3g} x; costs are those of the first epoch",
    )


@dataclass(frozen=True)
class _Epoch:
    first_s: float
    batch_s: float


def _epoch(loader: Any, workers: int) -> _Epoch:
    started = time.perf_counter()
    iterator = iter(loader)
    next(iterator)
    first = time.perf_counter()
    count = sum(1 for _ in iterator)
    ended = time.perf_counter()
    return _Epoch(first - started, (ended - first) / count * workers)
