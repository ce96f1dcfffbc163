"""``headrace bench ordinary``: programs as most people write them, beside torch's loader."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from headrace import DataLoader
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

BATCH_SIZES = (1, 8, 64, 512)
WORKERS = (0, 2)
# Batches of an epoch, by batch size: long enough to be timed, short enough for eighty cells.
_BATCHES = {0: {1: 2000, 8: 1000, 64: 250, 512: 40}, 2: {1: 300, 8: 300, 64: 150, 512: 30}}
_LEAST_NOISE, _MOST_NOISE = 0.02, 0.05
_TYPICAL = 1.5
_OWN_COST_US = 10.0

_MEANING = (
    "a cell is one kind of dataset, batch size and number of workers; an epoch counts from iter() "
    "to the end of the last worker, shuffled where there is an order; nothing is done with a batch",
    "both loaders in turn in each round, and the best epoch of each counts: the ratio is torch's "
    "best by ours, beside it the smallest and largest ratio of the rounds; worst cells first",
    "noise: how far the best of torch's even rounds and of its odd ones lie apart, in the median "
    "over the cells, within 2 and 5 %; a cell must reach 1 less that",
    "own cost: an epoch without workers less the bare loop of dataset[index] and the collation",
)


class Tensors(Dataset[Any]):
    """An image of 16 numbers and a label, as tensors."""

    def __init__(self, length: int) -> None:
        self.x, self.y = torch.rand(length, 16), torch.arange(length)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.y[index]


class Arrays(Tensors):
    """The same as NumPy arrays, and a label that is an int."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.rows = self.x.numpy()

    def __getitem__(self, index: int) -> Any:
        return self.rows[index], index


class Dicts(Tensors):
    """The same as dicts."""

    def __getitem__(self, index: int) -> Any:
        return {"x": self.x[index], "y": self.y[index]}


class Texts(Tensors):
    """A text and a label."""

    def __getitem__(self, index: int) -> Any:
        return f"text number {index}", index


class Augmented(Arrays):
    """An array that is flipped or not, with noise from NumPy's generator."""

    def __getitem__(self, index: int) -> Any:
        row = self.rows[index] + np.random.rand(16).astype(np.float32)
        return (row[::-1].copy() if torch.rand(()) < 0.5 else row), index


class Stream(IterableDataset[Any]):
    """Samples of two tensors, one after the other; workers share them out."""

    def __init__(self, length: int) -> None:
        self.samples = Tensors(length)

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return map(self.samples.__getitem__, range(first, len(self.samples), step))


def collate(samples: list[Any]) -> Any:
    """Return a batch by a function of the user's own: the samples as they are."""
    return samples


def _half(length: int) -> Dataset[Any]:
    return Subset(Tensors(2 * length), range(0, 2 * length, 2))


def _joined(length: int) -> Dataset[Any]:
    return ConcatDataset([Tensors(length // 2), Tensors(length - length // 2)])


def _columns(length: int) -> Dataset[Any]:
    return TensorDataset(torch.rand(length, 16), torch.arange(length))


KINDS: dict[str, tuple[Callable[[int], Dataset[Any]], Callable[[list[Any]], Any] | None]] = {
    "tensors": (Tensors, None),
    "NumPy arrays": (Arrays, None),
    "dicts": (Dicts, None),
    "texts": (Texts, None),
    "random augmentation": (Augmented, None),
    "own collate_fn": (Tensors, collate),
    "Subset": (_half, None),
    "ConcatDataset": (_joined, None),
    "IterableDataset": (Stream, None),
    "TensorDataset": (_columns, None),
}


@dataclass(frozen=True)
class _Cell:
    kind: str
    batch_size: int
    workers: int
    batches: int
    ours: list[float]  # seconds of each epoch
    torch: list[float]
    bare: list[float]

    @property
    def ratio(self) -> float:
        return min(self.torch) / min(self.ours)

    @property
    def own_cost_us(self) -> float:
        return (min(self.ours) - min(self.bare)) / self.batches * 1e6

    @property
    def noise(self) -> float:
        even, odd = min(self.torch[::2]), min(self.torch[1::2] or self.torch)
        return abs(even / odd - 1)


def measure(size: Size, say: Say) -> Report:
    """Measure every cell; the worst come first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cells = []
        for kind in KINDS:
            say(f"{kind}: batches of {', '.join(map(str, BATCH_SIZES))} without and with workers")
            for workers in WORKERS:
                cells += [_measured(kind, batch, workers, size) for batch in BATCH_SIZES]
    finally:
        torch.set_num_threads(before)
    noise = min(_MOST_NOISE, max(_LEAST_NOISE, median(cell.noise for cell in cells)))
    rows = [_row(cell, noise) for cell in sorted(cells, key=lambda cell: cell.ratio)]
    return Report(
        bench="ordinary",
        meaning=(*_MEANING, f"noise of this run: {100 * noise:.1f} %"),
        rows=(*rows, _typical(cells), *_own_costs(cells)),
        size=size,
        environment=environment(),
        must_reach=True,
    )


def _measured(kind: str, batch_size: int, workers: int, size: Size) -> _Cell:
    make, collate_fn = KINDS[kind]
    batches = size.choose(_BATCHES[workers][batch_size], 4)
    dataset = make(batches * batch_size)
    options: dict[str, Any] = {"num_workers": workers, "collate_fn": collate_fn}
    options["shuffle"] = not isinstance(dataset, IterableDataset)
    systems = {
        "ours": partial(_epoch, DataLoader(dataset, batch_size, **options)),
        "torch": partial(_epoch, torch.utils.data.DataLoader(dataset, batch_size, **options)),
    }
    if not workers:
        systems["bare"] = partial(_bare, dataset, batch_size, collate_fn)
    runs = in_turn(systems, size.rounds)
    return _Cell(
        kind, batch_size, workers, batches, runs["ours"], runs["torch"], runs.get("bare", [])
    )


def _epoch(loader: Any) -> float:
    started = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - started


def _bare(dataset: Any, batch_size: int, collate_fn: Any) -> float:
    """Return the seconds of an epoch that nothing but the user's work is in."""
    make = collate_fn or torch.utils.data.default_collate
    streamed = isinstance(dataset, IterableDataset)
    started = time.perf_counter()
    if streamed:
        samples: list[Any] = []
        for sample in dataset:
            samples.append(sample)
            if len(samples) == batch_size:
                make(samples)
                samples = []
    else:
        order = torch.randperm(len(dataset)).tolist()
        for first in range(0, len(order), batch_size):
            make([dataset[index] for index in order[first : first + batch_size]])
    return time.perf_counter() - started


def _row(cell: _Cell, noise: float) -> Row:
    rounds = [a / b for a, b in zip(cell.torch, cell.ours, strict=True)]
    each = 1e6 / cell.batches
    systems = {"headrace": cell.ours, "torch loader": cell.torch, "bare loop": cell.bare}
    return Row(
        work=f"{cell.kind}, batch {cell.batch_size}, {cell.workers} workers",
        figure="best epoch, torch / headrace",
        value=Spread(cell.ratio, min(cell.ratio, *rounds), max(cell.ratio, *rounds)),
        unit="x",
        target=at_least(1 - noise),
        systems=tuple(
            System(name, spread([min(seconds) * each]), "us a batch")
            for name, seconds in systems.items()
            if seconds
        ),
    )


def _typical(cells: list[_Cell]) -> Row:
    found = spread([cell.ratio for cell in cells])
    return Row(
        work=f"the median of {len(cells)} cells",
        figure="best epoch, torch / headrace",
        value=found,
        unit="x",
        target=at_least(_TYPICAL),
        systems=(System("headrace", found, "x"),),
    )


def _own_costs(cells: list[_Cell]) -> Iterator[Row]:
    """Yield the largest own cost of each batch size; columns are gathered and have none."""
    for batch_size in BATCH_SIZES:
        mine = [
            cell
            for cell in cells
            if (cell.batch_size, cell.workers) == (batch_size, 0) and cell.kind != "TensorDataset"
        ]
        worst = max(mine, key=lambda cell: cell.own_cost_us)
        figures = spread([cell.own_cost_us for cell in mine])
        yield Row(
            work=f"own cost, batch {batch_size}, 0 workers",
            figure=f"the largest of {len(mine)} kinds",
            value=spread([worst.own_cost_us]),
            unit="us a batch",
            target=at_most(_OWN_COST_US),
            systems=(System("headrace", spread([min(worst.ours) * 1e6]), "us an epoch"),),
            note=f"{worst.kind}; in the median {figures.median:.1f} us",
        )
