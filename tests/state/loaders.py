"""Loaders made from plain values, so that another process can make the same one."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)
from torch.utils.data.distributed import DistributedSampler

import headrace
from headrace import DataLoader


class Augmented(Dataset[Any]):
    """Each sample draws from all three global generators."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "noise": torch.rand(3),
            "jitter": np.random.rand(),
            "flip": random.random() < 0.5,
        }


def columns(n: int) -> TensorDataset:
    return TensorDataset(torch.arange(n), torch.arange(2.0 * n).reshape(n, 2))


class Eager(Sampler[int]):
    """Draws its whole order when it is asked for an iterator."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.n).tolist())


class AtFirst(Eager):
    """Draws its whole order with its first index, as a generator function does."""

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.n).tolist()


class Lazy(Eager):
    """Draws each index when it is due."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.n):
            yield int(torch.randint(self.n, ()))


class OwnGenerator(Eager):
    """Draws each index from a generator of its own."""

    def __init__(self, n: int, generator: torch.Generator | None = None) -> None:
        super().__init__(n)
        self.generator = torch.Generator() if generator is None else generator

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.n):
            yield int(torch.randint(self.n, (), generator=self.generator))


class Stateful(Eager):
    """Says where it stands: its epoch, its seed and its position; it draws a seed an epoch."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.epoch, self.seed, self.position, self.loaded = 0, 0, 0, False

    def __iter__(self) -> Iterator[int]:
        if not self.loaded:
            self.seed, self.position = int(torch.randint(1000, ())), 0
        self.loaded = False
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n).tolist()
        while self.position < self.n:
            self.position += 1
            yield order[self.position - 1]
        self.epoch += 1

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "seed": self.seed, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.seed, self.position = state["epoch"], state["seed"], state["position"]
        self.loaded = 0 < self.position < self.n


class Yielded(Eager):
    """At its end its state says that nothing is left, as torchdata's samplers do."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.yielded, self.next_yielded = 0, 0

    def __iter__(self) -> Iterator[int]:
        self.yielded, self.next_yielded = self.next_yielded, 0
        for index in torch.randperm(self.n).tolist()[self.yielded :]:
            self.yielded += 1
            yield index

    def state_dict(self) -> dict[str, int]:
        return {"yielded": self.yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next_yielded = state["yielded"]


class CountsEpochs(Eager):
    """Its order follows from a count of the times it was asked for an iterator."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.epoch, self.position, self.resuming = 0, 0, False

    def __iter__(self) -> Iterator[int]:
        if not self.resuming:
            self.epoch, self.position = self.epoch + 1, 0
        self.resuming = False
        return self._rest(np.random.default_rng(self.epoch).permutation(self.n).tolist())

    def _rest(self, order: list[int]) -> Iterator[int]:
        while self.position < self.n:
            self.position += 1
            yield order[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]
        self.resuming = 0 < self.position < self.n


class Uneven(Sampler[list[int]]):
    """Batches of one, two, three samples and so on, from a shuffled order."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        raise AssertionError("nobody needs to know, and it would cost an epoch")

    def __iter__(self) -> Iterator[list[int]]:
        order, size = torch.randperm(self.n).tolist(), 1
        while order:
            yield order[:size]
            order, size = order[size:], size + 1


def own() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def both_from_one(n: int) -> dict[str, Any]:
    generator = own()
    return {"sampler": RandomSampler(range(n), generator=generator), "generator": generator}


def custom_from_one(n: int) -> dict[str, Any]:
    generator = own()
    return {"sampler": OwnGenerator(n, generator), "generator": generator}


# What is given to a loader over n samples; batch_size comes on top where it may.
ORDERS: dict[str, Callable[[int], dict[str, Any]]] = {
    "sequential": lambda n: {},
    "shuffled": lambda n: {"shuffle": True},
    "shuffled, own generator": lambda n: {"shuffle": True, "generator": own()},
    "shuffled, seed=": lambda n: {"shuffle": True, "seed": 7},
    "with replacement": lambda n: {"sampler": RandomSampler(range(n), True, n + 35)},
    "with replacement, own generator": lambda n: {
        "sampler": RandomSampler(range(n), True, n + 35, generator=own())
    },
    "own generator of the sampler": lambda n: {"sampler": RandomSampler(range(n), generator=own())},
    "one generator for both": both_from_one,
    "own generator of the loader only": lambda n: {
        "sampler": RandomSampler(range(n)),
        "generator": own(),
    },
    "bijection": lambda n: {"sampler": headrace.RandomSampler(range(n), method="bijection")},
    "subset": lambda n: {"sampler": SubsetRandomSampler(range(0, n, 2))},
    "weighted": lambda n: {"sampler": WeightedRandomSampler([1.0 + i for i in range(n)], n)},
    "distributed": lambda n: {"sampler": DistributedSampler(range(n), num_replicas=2, rank=1)},
    "custom, eager": lambda n: {"sampler": Eager(n)},
    "custom, at the first index": lambda n: {"sampler": AtFirst(n)},
    "custom, lazy": lambda n: {"sampler": Lazy(n)},
    "custom, own generator": lambda n: {"sampler": OwnGenerator(n)},
    "custom, loader's generator": custom_from_one,
    "custom, seed=": lambda n: {"sampler": Lazy(n), "seed": 7},
    "stateful": lambda n: {"sampler": Stateful(n)},
    "stateful, seed=": lambda n: {"sampler": Stateful(n), "seed": 7},
    "stateful, counts epochs": lambda n: {"sampler": CountsEpochs(n)},
    "stateful, yielded": lambda n: {"sampler": Yielded(n)},
    "batch sampler": lambda n: {"batch_sampler": Uneven(n)},
    "torch's batch sampler": lambda n: {
        "batch_sampler": BatchSampler(RandomSampler(range(n)), 3, True)
    },
    "no batches": lambda n: {"batch_size": None, "shuffle": True},
}


def make(data: str, n: int, order: str, batch_size: int, **options: Any) -> DataLoader[Any]:
    """Make a loader over ``n`` samples: ``data`` is "columns" or "augmented"."""
    given = ORDERS[order](n)
    if "batch_size" not in given and "batch_sampler" not in given:
        given["batch_size"] = batch_size
        given["drop_last"] = options.pop("drop_last", False)
    options.pop("drop_last", None)
    return DataLoader(columns(n) if data == "columns" else Augmented(n), **given, **options)


def plain(batch: Any) -> Any:
    """A batch as values that can be compared and sent."""
    if isinstance(batch, torch.Tensor):
        return batch.tolist()
    if isinstance(batch, dict):
        return {key: plain(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [plain(value) for value in batch]
    return batch


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def run_through(loader: DataLoader[Any], epochs: int) -> tuple[list[Any], list[list[str]]]:
    """Batches of all epochs, and the states before and behind each step; the last: after it."""
    batches: list[Any] = []
    states: list[list[str]] = []
    for _ in range(epochs):
        batches.append([])
        states.append([json.dumps(loader.state_dict())])
        for batch in loader:
            batches[-1].append(plain(batch))
            states[-1].append(json.dumps(loader.state_dict()))
        states[-1].append(json.dumps(loader.state_dict()))
    return batches, states


def resume(arguments: tuple[Any, ...], options: dict[str, Any], state: str, epochs: int) -> Any:
    """Make a loader, go on from a state, and return the batches of so many epochs."""
    seed_all(4321)
    loader = make(*arguments, **options)
    loader.load_state_dict(json.loads(state))
    assert loader.state_dict() == json.loads(state)
    return [[plain(batch) for batch in loader] for _ in range(epochs)]


class Stream(IterableDataset[Any]):
    """Each worker streams its own numbers, with noise; it cannot say where it stands."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, count = (0, 1) if info is None else (info.id, info.num_workers)
        for number in range(worker, self.n + worker, count):
            yield {"number": number, "noise": torch.rand(()), "jitter": np.random.rand()}


class StatefulStream(Stream):
    """It says how far it is, and counts what it reads."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.position, self.read = 0, 0

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, count = (0, 1) if info is None else (info.id, info.num_workers)
        numbers = range(worker, self.n + worker, count)
        while self.position < len(numbers):
            self.position += 1
            self.read += 1
            yield {"number": numbers[self.position - 1], "noise": torch.rand(())}
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]
