"""``headrace bench order``: shuffles of any size, what a state costs, how long resuming takes."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import Any

import torch
import torch.utils.data

from headrace import DataLoader, RandomSampler
from headrace.bench.costs import added_peak
from headrace.bench.harness import (
    Report,
    Row,
    Say,
    Size,
    Spread,
    System,
    at_least,
    at_most,
    environment,
    in_turn,
    spread,
)
from headrace.engine.order.state import seal
from headrace.sampling.order import index_chunks

OURS = "headrace"
TORCH = "torch"
_BATCH = 16
_LARGE = 10**10
_FIRST_INDEX_MS = 20.0
_PEAK_MIB = 64.0
_RATE = 20.0
_STATE_US = 100.0
_RESUME_MS = 50.0
_SKIPPED_AT_MOST = 10**5  # steps that torch is made to skip; beyond that it takes minutes

_MEANING = (
    "first index: from iter(sampler) to its first index; memory: the peak that this adds to a "
    "process of its own; torch's RandomSampler where it fits (10^8 with --full: 15 s, 5 GB)",
    "indices/s: all of 10^7 indices of a shuffle of 10^10, as arrays, one core; torch: as Python "
    "integers, the form in which its loader takes them",
    "state_dict() is called inside a loop over a shuffled loader, on torch's default generator",
    f"resume: load_state_dict() and iter() to the first batch, at a step of an epoch of 10^10 "
    f"samples in batches of {_BATCH} (for torch's order: of 10^6); torch: iter() and skipping the "
    f"batches before, as its users do, on a dataset whose samples cost nothing",
)


def measure(size: Size, say: Say) -> Report:
    """Measure all rows; takes about half a minute, and a few seconds when quick."""
    where = environment()
    rows = [*_first_indices(size, say), _memory(size, say), _rate(size, say), _state(size, say)]
    rows += _resumes(size, say)
    return Report("order", _MEANING, tuple(rows), size, where)


def _ms(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def _first_index_ms(kind: Callable[[range], Any], n: int) -> float:
    sampler = kind(range(n))
    return _ms(lambda: next(iter(sampler)))


def _first_indices(size: Size, say: Say) -> Iterator[Row]:
    for n in (10**6, 10**8, _LARGE):
        say(f"first of {n:,} indices")
        runs = {OURS: partial(_first_index_ms, RandomSampler, n)}
        if n == 10**6 or (n == 10**8 and size.full):
            runs[TORCH] = partial(_first_index_ms, torch.utils.data.RandomSampler, n)
        times = {name: spread(values) for name, values in in_turn(runs, size.rounds).items()}
        yield _row(f"shuffle of {n:.0e}", "first index", times, "ms", _FIRST_INDEX_MS)


def _row(work: str, figure: str, values: dict[str, Spread], unit: str, bound: float) -> Row:
    systems = tuple(System(name, value, unit) for name, value in values.items())
    return Row(work, figure, values[OURS], unit, at_most(bound), systems)


def _peak_mib(ours: bool, n: int) -> float:
    """Return what the first index adds; runs in a process of its own."""
    kind = RandomSampler if ours else torch.utils.data.RandomSampler
    next(iter(kind(range(8))))
    return added_peak(lambda: next(iter(kind(range(n))))) / 2**20


def _memory(size: Size, say: Say) -> Row:
    say("memory to the first index, in processes of their own")
    wanted = {OURS: (True, _LARGE), f"{TORCH}, 1e+06": (False, 10**6)}
    if size.full:
        wanted[f"{TORCH}, 1e+08"] = (False, 10**8)
    values = {}
    for name, arguments in wanted.items():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            # a page at least: nothing may be added at all
            peak = max(fresh.submit(_peak_mib, *arguments).result(), 2**-8)
            values[name] = spread([peak])
    return _row("shuffle of 1e+10", "memory to the first index, peak", values, "MiB", _PEAK_MIB)


def _rate(size: Size, say: Say) -> Row:
    count = size.choose(10**7, 10**5)
    say(f"{count:,} indices")

    def ours() -> float:
        chunks = index_chunks(RandomSampler(range(_LARGE)))
        assert chunks is not None
        seen, started = 0, time.perf_counter()
        while seen < count:
            seen += len(next(chunks))
        return seen / (time.perf_counter() - started) / 1e6

    def torchs() -> float:
        n = size.choose(10**6, 10**5)
        started = time.perf_counter()
        for _ in torch.utils.data.RandomSampler(range(n)):
            pass
        return n / (time.perf_counter() - started) / 1e6

    rates = in_turn({OURS: ours, TORCH: torchs}, size.rounds)
    values = {name: spread(rate) for name, rate in rates.items()}
    systems = tuple(System(name, value, "M indices/s") for name, value in values.items())
    return Row(
        "shuffle of 1e+10", "indices/s", values[OURS], "M indices/s", at_least(_RATE), systems
    )


def _state(size: Size, say: Say) -> Row:
    say("state_dict()")
    count = size.choose(2_000, 50)
    dataset: Any = range(10**6)
    loader: DataLoader[int] = DataLoader(dataset, batch_size=_BATCH, shuffle=True)
    batches = iter(loader)

    def one() -> float:
        next(batches)
        started = time.perf_counter()
        for _ in range(count):
            loader.state_dict()
        return (time.perf_counter() - started) * 1e6 / count

    values = in_turn({OURS: one}, size.rounds)
    return _row("shuffled loader", "state_dict()", {OURS: spread(values[OURS])}, "us", _STATE_US)


_KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "in order": (_LARGE, {}),
    "bijection": (_LARGE, {"shuffle": True}),
    "torch's order": (10**6, {"shuffle": True}),
}


def _resumes(size: Size, say: Say) -> Iterator[Row]:
    for kind, (n, options) in _KINDS.items():
        for step in (10**3, 10**5, 10**7):
            if step * _BATCH < n:  # torch's order ends before
                say(f"resume at step {step:,}, {kind}")
                yield _resume(kind, n, options, step, size)


def _resume(kind: str, n: int, options: dict[str, Any], step: int, size: Size) -> Row:
    dataset: Any = range(n)

    def make() -> DataLoader[int]:
        return DataLoader(dataset, batch_size=_BATCH, **options)

    saved = make()
    next(iter(saved))
    state = saved.state_dict()
    state["steps"], state["samples"] = step, step * _BATCH
    seal(state)

    def ours() -> float:
        loader = make()

        def resume() -> None:
            loader.load_state_dict(state)
            next(iter(loader))

        return _ms(resume)

    def skipping() -> float:
        fits: Any = range(min(n, 10**7))  # as much as torch can shuffle in a second or two
        loader = torch.utils.data.DataLoader(fits, batch_size=_BATCH, **options)
        return _ms(lambda: next(islice(iter(loader), step, None)))

    values = {OURS: spread(in_turn({OURS: ours}, size.rounds)[OURS])}
    if step <= size.choose(_SKIPPED_AT_MOST, 10**3):
        values[TORCH] = spread([skipping()])  # once: it takes its time
    return _row(f"{kind}, {n:.0e} samples", f"resume at step {step:,}", values, "ms", _RESUME_MS)
