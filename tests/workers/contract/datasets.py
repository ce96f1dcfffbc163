"""Datasets that say what a worker sees. At the top of a module, so that they can be pickled."""

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

# Eight workers on a small machine: torch and headrace warn alike.
MANY_WORKERS = "ignore:This DataLoader will create"


class Numbers(Dataset[Any]):
    """Sample i is i: an int, a small and a large tensor, and text."""

    def __init__(self, n: int, large: int = 5000) -> None:
        self.n, self.large = n, large

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.n:
            raise IndexError(index)
        return {
            "index": index,
            "small": torch.full((2,), index),
            "large": torch.full((self.large,), float(index)),
            "text": f"sample {index}",
        }


class Asked(Dataset[Any]):
    """Sample i is what ``ask`` returns in the process that fetches it."""

    def __init__(self, n: int, ask: Callable[[int], Any]) -> None:
        self.n, self.ask = n, ask

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        return self.ask(index)


def as_it_is(samples: Any) -> Any:
    """Collate nothing."""
    return samples


def worker_and_index(index: int) -> tuple[int, int]:
    info = get_worker_info()
    assert info is not None
    return info.id, index


def drawn(index: int) -> tuple[float, ...]:
    """Numbers from all three generators, and some that depend on what was drawn before."""
    return (
        index,
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.standard_normal(),
        torch.rand(()).item(),
        torch.randn(()).item(),
    )


class Drawn(Dataset[Any]):
    """Random samples, as many numbers as the index says."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> torch.Tensor:
        for _ in range(index % 3):
            torch.rand(index % 3 + 1), np.random.rand(), random.random()
        return torch.tensor(drawn(index), dtype=torch.float64)


class Shard(IterableDataset[Any]):
    """Worker w yields ``lengths[w]`` numbers, (w, 0), (w, 1), ..., and all in one process."""

    def __init__(self, lengths: list[int], promised: int | None = None) -> None:
        self.lengths, self.promised = lengths, promised

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        workers = range(len(self.lengths)) if info is None else [info.id]
        for worker in workers:
            for number in range(self.lengths[worker]):
                yield torch.tensor([worker, number])


class ShardWithLength(Shard):
    def __len__(self) -> int:
        assert self.promised is not None
        return self.promised


def pid(index: int) -> int:
    return os.getpid()
