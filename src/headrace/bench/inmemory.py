"""``headrace bench inmemory``: batches of data that is in memory, in the user's own process."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.data
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from headrace import DataLoader
from headrace.bench.costs import beyond_the_data, cpu_seconds
from headrace.bench.datasets import UserRows, UserRowsAtOnce
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
    ratios,
    spread,
)
from headrace.engine.making.gather import BLOCK_BYTES, MAX_BLOCK_BATCHES

OURS = "headrace"
TORCH = "torch loader"
RECIPE = "best recipe"
BARE = "bare loop"

# Per batch size: headrace / each of the other three.
_TARGETS = {
    32: {TORCH: 18.0, RECIPE: 5.0, BARE: 0.95},
    256: {TORCH: 30.0, RECIPE: 2.2, BARE: 0.95},
    4096: {TORCH: 50.0, RECIPE: 1.5, BARE: 0.95},
}
_FIRST_BATCH_MS = 15.0
_COLUMNS = 128

_MEANING = (
    "128 float32 and an int64 label a sample, shuffled, one torch thread; every system in turn in "
    "each round, medians; a ratio is the median of the rounds' ratios",
    "throughput is a whole epoch, from before iter() to the last batch: each system draws its own "
    "permutation within that time; nothing is done with a batch",
    "torch loader: DataLoader(TensorDataset, shuffle=True); best recipe: DataLoader(TensorDataset, "
    "batch_size=None, sampler=torch.randperm(n).split(B)); bare loop: index_select(out=) of each "
    "batch of a torch.randperm(n).split(B), into as many buffers in turn as the loader has in "
    "flight: two blocks, the one in hand and the one that is gathered (one warm buffer is no "
    "limit: a batch that is kept could not stay in it)",
    "CPU seconds are those of one epoch",
)


@dataclass(frozen=True)
class Epoch:
    """One epoch of one system."""

    samples: int
    batch_size: int
    first_s: float
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Samples a second, all in."""
        return self.samples / self.seconds

    @property
    def later_rate(self) -> float:
        """Samples a second once the first batch has come: neither start nor permutation."""
        return (self.samples - self.batch_size) / (self.seconds - self.first_s)


def measure(size: Size, say: Say) -> Report:
    """Measure all rows; takes about two minutes and 0.6 GB, a few seconds when quick."""
    where = environment()
    with _one_torch_thread():
        rows = [*_throughput(size, say), _memory(size, say), *_user_datasets(size, say)]
        rows.append(_single_samples(size, say))
    meaning = (f"{_samples(size):,} samples where a row says nothing else", *_MEANING)
    return Report("inmemory", meaning, tuple(rows), size, {**where, "torch_threads": 1})


def _samples(size: Size) -> int:
    return size.choose(1_000_000, 20_000)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _throughput(size: Size, say: Say) -> list[Row]:
    samples = _samples(size)
    rows_of_data = torch.rand(samples, _COLUMNS)
    labels = torch.arange(samples)
    rows, first_batches = [], {}
    for batch_size, targets in _TARGETS.items():
        say(f"batches of {batch_size}, four systems")
        epochs = in_turn(_four_systems(rows_of_data, labels, batch_size), size.rounds)
        rows += [_ratio_row(batch_size, epochs, other, bound) for other, bound in targets.items()]
        first_batches[batch_size] = epochs
    rows.append(_first_batch_row(first_batches[256]))
    return rows


def _four_systems(rows: Tensor, labels: Tensor, batch_size: int) -> dict[str, Callable[[], Epoch]]:
    samples = len(labels)
    dataset = TensorDataset(rows, labels)
    ours = DataLoader(dataset, batch_size=batch_size, shuffle=True)
    theirs = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True)

    def recipe() -> Iterable[Any]:
        batches: Any = _shuffled(samples, batch_size)
        return torch.utils.data.DataLoader(dataset, batch_size=None, sampler=batches)

    return {
        OURS: lambda: _epoch(lambda: ours, samples, batch_size),
        TORCH: lambda: _epoch(lambda: theirs, samples, batch_size),
        RECIPE: lambda: _epoch(recipe, samples, batch_size),
        BARE: lambda: _bare_epoch(rows, labels, batch_size),
    }


def _shuffled(samples: int, batch_size: int) -> tuple[Tensor, ...]:
    order = torch.randperm(samples)
    return order.split(batch_size)  # type: ignore[no-untyped-call,no-any-return]


def _epoch(make: Callable[[], Iterable[Any]], samples: int, batch_size: int) -> Epoch:
    cpu, started = cpu_seconds(), time.perf_counter()
    iterator = iter(make())
    batch = next(iterator)
    first = time.perf_counter()
    # As in a training loop, the name holds a batch until the next one has come.
    for batch in iterator:  # noqa: B007
        pass
    ended = time.perf_counter()
    del batch
    return Epoch(samples, batch_size, first - started, ended - started, cpu_seconds() - cpu)


def _bare_epoch(rows: Tensor, labels: Tensor, batch_size: int) -> Epoch:
    samples = len(labels)
    sample_bytes = rows.element_size() * _COLUMNS + labels.element_size()
    in_flight = 2 * max(1, min(BLOCK_BYTES // (sample_bytes * batch_size), MAX_BLOCK_BATCHES))
    buffers = [
        (torch.empty(batch_size, _COLUMNS), torch.empty(batch_size, dtype=labels.dtype))
        for _ in range(in_flight)
    ]
    cpu, started = cpu_seconds(), time.perf_counter()
    first = 0.0
    for number, indices in enumerate(_shuffled(samples, batch_size)):
        row_buffer, label_buffer = buffers[number % in_flight]
        if len(indices) < batch_size:
            row_buffer, label_buffer = row_buffer[: len(indices)], label_buffer[: len(indices)]
        torch.index_select(rows, 0, indices, out=row_buffer)
        torch.index_select(labels, 0, indices, out=label_buffer)
        first = first or time.perf_counter()
    ended = time.perf_counter()
    return Epoch(samples, batch_size, first - started, ended - started, cpu_seconds() - cpu)


def _ratio_row(batch_size: int, epochs: dict[str, list[Epoch]], other: str, bound: float) -> Row:
    later = _rate_ratio(epochs[OURS], epochs[other], later=True).median
    return Row(
        work=f"batch {batch_size}",
        figure=f"throughput, headrace / {other}",
        value=_rate_ratio(epochs[OURS], epochs[other]),
        unit="x",
        target=at_least(bound),
        systems=(_rate_system(OURS, epochs[OURS]), _rate_system(other, epochs[other])),
        note=f"after the first batch {later:.3g} x",
    )


def _rate_ratio(ours: list[Epoch], theirs: list[Epoch], later: bool = False) -> Spread:
    if later:
        return ratios([epoch.later_rate for epoch in ours], [epoch.later_rate for epoch in theirs])
    return ratios([epoch.rate for epoch in ours], [epoch.rate for epoch in theirs])


def _rate_system(name: str, epochs: list[Epoch]) -> System:
    rate = spread([epoch.rate / 1e6 for epoch in epochs])
    cpu_s = spread([epoch.cpu_s for epoch in epochs]).median
    return System(name, rate, "M samples/s", cpu_s)


def _first_batch_row(epochs: dict[str, list[Epoch]]) -> Row:
    times = {name: spread([e.first_s * 1e3 for e in epochs[name]]) for name in (OURS, TORCH)}
    return Row(
        work="batch 256",
        figure="first batch after iter()",
        value=times[OURS],
        unit="ms",
        target=at_most(_FIRST_BATCH_MS),
        systems=tuple(System(name, time_ms, "ms") for name, time_ms in times.items()),
    )


def _memory(size: Size, say: Say) -> Row:
    say("memory beyond the data, in processes of their own")
    samples = _samples(size)
    mib = {name: beyond_the_data(name, samples, _COLUMNS, 256) / 2**20 for name in (OURS, TORCH)}
    # Four blocks of 1 MiB, and eight bytes of permutation a sample.
    bound = 4 + samples * 8 / 2**20
    return Row(
        work="batch 256",
        figure="memory beyond the data, peak",
        value=spread([mib[OURS]]),
        unit="MiB",
        target=at_most(bound),
        systems=tuple(System(name, spread([value]), "MiB") for name, value in mib.items()),
        note="resident memory at its peak in an epoch, less before iter(); "
        "4 blocks of 1 MiB and the permutation",
    )


def _user_datasets(size: Size, say: Say) -> list[Row]:
    samples = size.choose(50_000, 2_000)
    rows, labels = torch.rand(samples, _COLUMNS), torch.arange(samples)
    plain, at_once = UserRows(rows, labels), UserRowsAtOnce(rows, labels)
    price = "includes seeding for the user's code and putting the generators back"
    return [
        _user_row(
            f"user's own Dataset of {samples:,}, batch 256", plain, 256, 1.1, price, size, say
        ),
        _user_row(
            f"user's own Dataset of {samples:,}, batch 32", plain, 32, 0.85, price, size, say
        ),
        _user_row(
            f"user's __getitems__, {samples:,}, batch 256", at_once, 256, 1.0, price, size, say
        ),
    ]


def _user_row(  # noqa: PLR0917
    work: str, dataset: Dataset[Any], batch: int, bound: float, note: str, size: Size, say: Say
) -> Row:
    say(work)
    epochs = _both_loaders(dataset, batch, size)
    return Row(
        work=work,
        figure="throughput, headrace / torch loader",
        value=_rate_ratio(epochs[OURS], epochs[TORCH]),
        unit="x",
        target=at_least(bound),
        systems=(_rate_system(OURS, epochs[OURS]), _rate_system(TORCH, epochs[TORCH])),
        note=note,
    )


def _both_loaders(dataset: Dataset[Any], batch_size: int, size: Size) -> dict[str, list[Epoch]]:
    ours = DataLoader(dataset, batch_size=batch_size, shuffle=True)
    theirs = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True)
    samples = len(ours.dataset)  # type: ignore[arg-type]
    return in_turn(
        {
            OURS: lambda: _epoch(lambda: ours, samples, batch_size),
            TORCH: lambda: _epoch(lambda: theirs, samples, batch_size),
        },
        size.rounds,
    )


def _single_samples(size: Size, say: Say) -> Row:
    samples = size.choose(100_000, 2_000)
    say(f"{samples:,} batches of one scalar")
    dataset = TensorDataset(torch.arange(samples, dtype=torch.float32))
    epochs = _both_loaders(dataset, 1, size)
    per_batch = {name: [e.seconds * 1e6 / samples for e in runs] for name, runs in epochs.items()}
    return Row(
        work=f"{samples:,} scalars, batch 1",
        figure="time per batch, headrace / torch loader",
        value=ratios(per_batch[OURS], per_batch[TORCH]),
        unit="x",
        target=at_most(1 / 3),
        systems=tuple(
            System(name, spread(times), "us", spread([e.cpu_s for e in epochs[name]]).median)
            for name, times in per_batch.items()
        ),
    )
