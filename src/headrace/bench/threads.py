"""``headrace bench threads``: worker threads beside loops that do nothing but the work."""

from __future__ import annotations

import threading
import time
import zlib
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from headrace import DataLoader
from headrace.bench.costs import tree_cpu_seconds
from headrace.bench.harness import (
    Report,
    Row,
    Say,
    Size,
    System,
    at_least,
    environment,
    in_turn,
    ratios,
    spread,
)

_BATCH = 32
_THREADS = 2


class Checksums(Dataset[Any]):
    """Samples whose work is done in C without the interpreter's lock, about 1 ms each."""

    def __init__(self, length: int, sample_s: float = 1e-3) -> None:
        self.length = length
        self.data = np.zeros(1 << 20, np.uint8).tobytes()
        times = []
        for _ in range(20):
            started = time.perf_counter()
            zlib.crc32(self.data)
            times.append(time.perf_counter() - started)
        self.data *= max(1, round(sample_s / min(times)))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, zlib.crc32(self.data, index)


@dataclass(frozen=True)
class _Run:
    rate: float
    cpu_s: float


def measure(size: Size, say: Say) -> Report:
    """Measure threads and processes of ours, torch's processes, and two bare loops at once."""
    say("about 1 ms a sample without the lock: 2 threads beside two bare loops")
    dataset = Checksums(_BATCH * size.choose(60, 6))
    threads, bare, loop = "headrace, 2 threads", "two bare loops", "one bare loop"
    systems = {
        threads: partial(_loaded, dataset, DataLoader, backend="thread"),
        "headrace, 2 processes": partial(_loaded, dataset, DataLoader, backend="process"),
        "torch loader, 2 processes": partial(_loaded, dataset, torch.utils.data.DataLoader),
        bare: partial(_bare, dataset, _THREADS),
        loop: partial(_bare, dataset, 1),
    }
    runs = in_turn(systems, size.rounds)
    rates = {name: [run.rate for run in runs[name]] for name in systems}
    row = Row(
        work=f"about 1 ms a sample without the lock, batch {_BATCH}, {_THREADS} threads",
        figure="throughput, headrace / two bare loops at once",
        value=ratios(rates[threads], rates[bare]),
        unit="x",
        target=at_least(0.9),
        systems=tuple(
            System(name, spread(rates[name]), "samples/s", median(r.cpu_s for r in runs[name]))
            for name in systems
        ),
        note=f"two bare loops / one {ratios(rates[bare], rates[loop]).median:.3g} x",
    )
    return Report(
        "threads",
        (
            "the work is zlib.crc32 over some MiB, which lets go of the interpreter's lock",
            "epochs are timed whole, from iter() to the end of the workers",
            "a bare loop makes its share of the samples, and neither collates nor hands them over",
        ),
        (row,),
        size,
        environment(),
    )


def _loaded(dataset: Checksums, loader_class: Any, **options: Any) -> _Run:
    loader = loader_class(dataset, batch_size=_BATCH, num_workers=_THREADS, **options)
    cpu, started = tree_cpu_seconds(), time.perf_counter()
    for _ in loader:
        pass
    seconds = time.perf_counter() - started
    return _Run(len(dataset) / seconds, tree_cpu_seconds() - cpu)


def _bare(dataset: Checksums, loops: int) -> _Run:
    def loop(part: int) -> None:
        for index in range(part, len(dataset), loops):
            dataset[index]

    cpu, started = tree_cpu_seconds(), time.perf_counter()
    several = [threading.Thread(target=loop, args=(part,)) for part in range(loops)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    seconds = time.perf_counter() - started
    return _Run(len(dataset) / seconds, tree_cpu_seconds() - cpu)
