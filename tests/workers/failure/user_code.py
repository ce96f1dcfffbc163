"""Datasets of users: slow, deaf to signals, fatal, or plain. Used in tests and in programs."""

import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

WIDTH = 3000  # a batch of 2 is 24,000 bytes: on a lease, not in the message


def sample(index: int) -> torch.Tensor:
    return torch.full((WIDTH,), float(index))


def indices_of(batches: Any) -> list[list[int]]:
    """The samples each batch is made of; a damaged batch is no multiple of one number."""
    found = []
    for batch in batches:
        assert (batch == batch[:, :1]).all(), "a batch was damaged"
        found.append([int(value) for value in batch[:, 0]])
    return found


class Marks:
    """A byte a slot, in memory that forked processes share."""

    def __init__(self, slots: int = 4096) -> None:
        self._memory = mmap.mmap(-1, slots)

    def add(self, slot: int) -> int:
        """Count one more; return how many there are."""
        self._memory[slot] = min(self._memory[slot] + 1, 255)
        return self._memory[slot]

    def __getitem__(self, slot: int) -> int:
        return self._memory[slot]

    def total(self) -> int:
        return sum(self._memory[:])


class Numbers(Dataset[torch.Tensor]):
    """Sample i is full of i. ``made`` counts how often each was made."""

    def __init__(self, length: int, before: Callable[[int], object] | None = None) -> None:
        self.length = length
        self.before = before
        self.made = Marks(max(length, 1))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.before is not None:
            self.before(index)
        self.made.add(index)
        return sample(index)


class Stream(IterableDataset[torch.Tensor]):
    """The numbers below ``length`` that are a worker's share."""

    def __init__(self, length: int, before: Callable[[int], object] | None = None) -> None:
        self.length = length
        self.before = before

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for index in range(first, self.length, step):
            if self.before is not None:
                self.before(index)
            yield sample(index)


def be_deaf() -> None:
    """Ignore and block every signal that can be."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


class Stuck:
    """From index ``start`` on, sleeps deaf to all signals; marks who does."""

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self.marks = Marks(64)

    def __call__(self, index: int) -> None:
        if index < self.start:
            return
        be_deaf()
        self.marks.add(get_worker_info().id)
        time.sleep(600)

    def stuck(self) -> int:
        return self.marks.total()


class Dies:
    """Kills its own process at one index, the first ``times`` times."""

    def __init__(self, at: int, times: int = 255, number: int = signal.SIGKILL) -> None:
        self.at, self.times, self.number = at, times, number
        self.deaths = Marks(1)

    def __call__(self, index: int) -> None:
        if index == self.at and self.deaths[0] < self.times:
            self.deaths.add(0)
            os.kill(os.getpid(), self.number)
            time.sleep(600)  # the signal comes now
