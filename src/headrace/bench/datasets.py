"""The datasets that the benches read. They can be pickled: workers may be spawned."""

import signal
import time
from multiprocessing.synchronize import Semaphore
from typing import NoReturn

import torch
from torch import Tensor
from torch.utils.data import Dataset


class UserRows(Dataset[tuple[Tensor, int]]):
    """What a user writes by hand: one sample at a time, a tensor of 128 and an int."""

    def __init__(self, rows: Tensor, labels: Tensor) -> None:
        self.rows = rows
        self.labels: list[int] = labels.tolist()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.rows[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)


class UserRowsAtOnce(UserRows):
    """The same with ``__getitems__``: a batch's samples asked for at once."""

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        rows = self.rows[indices].unbind(0)
        return [(row, self.labels[index]) for row, index in zip(rows, indices, strict=True)]


class Images(Dataset[Tensor]):
    """Images of (3, 224, 224) float32 that lie in memory: a worker only copies them."""

    def __init__(self, size: int) -> None:
        # 16 images are 9.6 MB: more than a core's cache, little beside the batches.
        self.images = torch.rand(16, 3, 224, 224)
        self.size = size

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index % 16]

    def __len__(self) -> int:
        return self.size


class Dictionaries(Dataset[dict[str, Tensor]]):
    """Samples that are dictionaries of 50 tensors of 8 float32 each."""

    def __init__(self, size: int) -> None:
        self.values = torch.rand(50, 8)
        self.names = [f"feature_{number}" for number in range(50)]
        self.size = size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(zip(self.names, self.values.unbind(0), strict=True))

    def __len__(self) -> int:
        return self.size


class PythonWork(Dataset[int]):
    """Samples that take a fixed amount of pure Python each."""

    def __init__(self, size: int, turns: int) -> None:
        self.size = size
        self.turns = turns

    def __getitem__(self, index: int) -> int:
        value = index
        for _ in range(self.turns):
            value = (value * 1103515245 + 12345) & 0x7FFFFFFF
        return value

    def __len__(self) -> int:
        return self.size

    @classmethod
    def lasting(cls, seconds: float, size: int) -> "PythonWork":
        """Return samples that take about ``seconds`` each on this machine."""
        probe = cls(1, 20_000)
        times = []
        for _ in range(7):
            started = time.perf_counter()
            probe[0]
            times.append(time.perf_counter() - started)
        return cls(size, max(1, round(20_000 * seconds / min(times))))


class Numbers(Dataset[int]):
    """Samples that cost nothing: what is left is the loader."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, index: int) -> int:
        return index

    def __len__(self) -> int:
        return self.size


class Stuck(Dataset[int]):
    """The first ``prompt`` samples come; each later one sleeps for ever and ignores signals."""

    def __init__(self, prompt: int, size: int, stuck: Semaphore) -> None:
        self.prompt = prompt
        self.size = size
        self.stuck = stuck

    def __getitem__(self, index: int) -> int:
        if index >= self.prompt:
            self._stay()
        return index

    def _stay(self) -> NoReturn:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        self.stuck.release()
        while True:
            time.sleep(3600)

    def __len__(self) -> int:
        return self.size
