"""``headrace bench auto``: ``num_workers="auto"`` beside every fixed setting."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils.data import Dataset

from headrace import DataLoader
from headrace.bench.costs import tree_cpu_seconds
from headrace.bench.datasets import PythonWork
from headrace.bench.harness import (
    Report,
    Row,
    Say,
    Size,
    System,
    at_most,
    environment,
    in_turn,
    ratios,
    spread,
)
from headrace.bench.threads import Checksums

_FIXED: dict[str, dict[str, Any]] = {
    "inline": {},
    "1 process": {"num_workers": 1, "backend": "process"},
    "2 processes": {"num_workers": 2, "backend": "process"},
    "1 thread": {"num_workers": 1, "backend": "thread"},
    "2 threads": {"num_workers": 2, "backend": "thread"},
}
_AUTO = 'headrace, num_workers="auto"'


class Light(Dataset[Any]):
    """Rows of a tensor, one by one."""

    def __init__(self, length: int) -> None:
        self.rows = torch.rand(length, 128)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.rows[index]


class Slow(Dataset[Any]):
    """Samples that are waited for, as those of a network or a disk."""

    def __init__(self, length: int, sample_s: float) -> None:
        self.length = length
        self.sample_s = sample_s

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        time.sleep(self.sample_s)
        return index


@dataclass(frozen=True)
class _Run:
    seconds: float
    cpu_s: float


def measure(size: Size, say: Say) -> Report:
    """Measure four kinds of work with every fixed setting and with the one that auto takes."""
    works: dict[str, Dataset[Any]] = {
        "light tensors, one by one": Light(32 * size.choose(3000, 50)),
        "Python-heavy, 150 us a sample": PythonWork.lasting(150e-6, 32 * size.choose(300, 10)),
        "1 ms a sample without the lock": Checksums(32 * size.choose(60, 6)),
        "slow input, 1 ms of sleep": Slow(32 * size.choose(60, 6), 1e-3),
    }
    rows = tuple(_row(name, dataset, size, say) for name, dataset in works.items())
    return Report(
        "auto",
        (
            "seconds of an epoch, from iter() to the end of the workers; for auto those of the "
            "epochs after its choice, which the note tells the cost of",
            "the best fixed setting is that of the smallest median over the rounds",
        ),
        rows,
        size,
        environment(),
    )


def _row(name: str, dataset: Dataset[Any], size: Size, say: Say) -> Row:
    say(f"{name}: auto beside {len(_FIXED)} fixed settings")
    auto = DataLoader(dataset, batch_size=32, shuffle=True, num_workers="auto")
    started = time.perf_counter()
    iter(auto)
    choosing_s = time.perf_counter() - started
    loaders = {
        kind: DataLoader(dataset, batch_size=32, shuffle=True, **fixed)
        for kind, fixed in _FIXED.items()
    }
    systems = {_AUTO: partial(_epoch, auto), **{k: partial(_epoch, v) for k, v in loaders.items()}}
    runs = in_turn(systems, size.rounds)
    seconds = {kind: [run.seconds for run in runs[kind]] for kind in systems}
    best = min(_FIXED, key=lambda kind: median(seconds[kind]))
    chosen = f"{auto.num_workers} x {auto.backend}" if auto.num_workers else "inline"
    return Row(
        work=name,
        figure=f"seconds an epoch, auto / best fixed ({best})",
        value=ratios(seconds[_AUTO], seconds[best]),
        unit="x",
        target=at_most(1.1),
        systems=tuple(
            System(kind, spread(seconds[kind]), "s", median(r.cpu_s for r in runs[kind]))
            for kind in systems
        ),
        note=f"auto took {chosen}, after {choosing_s:.2f} s: {auto.statistics().why}",
    )


def _epoch(loader: DataLoader[Any]) -> _Run:
    cpu, started = tree_cpu_seconds(), time.perf_counter()
    for _ in loader:
        pass
    return _Run(time.perf_counter() - started, tree_cpu_seconds() - cpu)
