"""The ways in which batches are made, each with the samples that it must give."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch

import headrace
from engine.test_transfer import FakeLane
from headrace.engine.ahead import transfer

SAMPLES, BATCH = 96, 4
ROWS = 6000  # of int64, in a sample: 48 kB, on a lease


def _sample(i: int) -> Any:
    info = torch.utils.data.get_worker_info()
    if info is None:
        torch.rand(3)  # from the program's generator, which is put back
    drawn = torch.rand((), generator=headrace.task_rng().torch_generator)
    return torch.full((ROWS,), i), i, drawn


class Numbers(headrace.Dataset):
    """Sample ``i`` is full of ``i``, with its index and a random number of its task's."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i: int) -> Any:
        return _sample(i)


class Counted(headrace.IterableDataset):
    """A stream that each worker takes its share of."""

    def __iter__(self) -> Any:
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for i in range(first * BATCH, SAMPLES, step * BATCH):
            for j in range(i, i + BATCH):
                yield _sample(j)


class Backwards(torch.utils.data.Sampler):
    """An order that only its owner knows."""

    def __init__(self) -> None:
        pass

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Any:
        return iter(range(SAMPLES))


def columns() -> headrace.TensorDataset:
    numbers = torch.arange(SAMPLES)
    return headrace.TensorDataset(numbers[:, None].repeat(1, ROWS), numbers, torch.zeros(SAMPLES))


class QuickLane(FakeLane):
    """Copies on a stand-in for a device, which has done them as soon as somebody looks."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = torch.device("cpu")

    def event(self) -> Any:
        event = super().event()
        self.run(len(self.link) // 2)
        return event

    def hand_over(self, event: Any, tensors: list[torch.Tensor]) -> None:
        self.run_until(event)


def _pin(batch: Any, device: str | None = None) -> Any:
    return [tensor.clone() for tensor in batch]


def _on_device() -> list[Any]:
    import headrace.iterator

    return [
        mock.patch.object(headrace.iterator, "target_device", lambda device: device),
        mock.patch.object(transfer, "lane_to", QuickLane),
    ]


def _pinned() -> list[Any]:
    import headrace.iterator

    return [
        mock.patch.object(
            headrace.iterator, "pin_device", lambda pin, device: "cuda" if pin else None
        ),
        mock.patch.object(headrace.iterator, "pin", _pin),
    ]


WORKERS = {"num_workers": 2, "worker_restarts": 0}
PERSISTENT = {**WORKERS, "persistent_workers": True}

# name: the dataset, the loader's options, and what stands in for hardware
WAYS: dict[str, tuple[Callable[[], Any], dict[str, Any], Callable[[], list[Any]]]] = {
    "inline": (Numbers, {}, list),
    "inline-stream": (Counted, {}, list),
    "threads": (Numbers, {**WORKERS, "backend": "thread"}, list),
    "threads-persistent": (Numbers, {**PERSISTENT, "backend": "thread"}, list),
    "processes": (Numbers, WORKERS, list),
    "processes-persistent": (Numbers, PERSISTENT, list),
    "processes-stream": (Counted, PERSISTENT, list),
    "processes-unordered": (Numbers, {**PERSISTENT, "in_order": False}, list),
    "gathered": (columns, {}, list),
    "gathered-custom": (columns, {"sampler": Backwards()}, list),
    "gather-thread": (columns, {"num_workers": 1}, list),
    "device-inline": (Numbers, {"device": "cpu"}, _on_device),
    "device-processes": (Numbers, {**PERSISTENT, "device": "cpu"}, _on_device),
    "pinned-processes": (Numbers, {**PERSISTENT, "pin_memory": True}, _pinned),
    "pinned-gathered": (columns, {"pin_memory": True}, _pinned),
}


class Way:
    """One of :data:`WAYS`, with its stand-ins in place while it is entered."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._dataset, self._options, self._stand_ins = WAYS[name]
        self._stack = ExitStack()

    def __enter__(self) -> "Way":
        for stand_in in self._stand_ins():
            self._stack.enter_context(stand_in)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def loader(self) -> Any:
        """Return a new loader, whose epochs all follow from one seed."""
        loader = headrace.DataLoader(self._dataset(), BATCH, seed=7, **self._options)
        if self._options.get("device"):
            loader._device = torch.device("meta")  # not the CPU: a Transfer is made
        return loader

    @property
    def ordered(self) -> bool:
        return self._options.get("in_order", True)

    @property
    def stream(self) -> bool:
        return self._dataset is Counted
