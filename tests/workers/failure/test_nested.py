"""Loaders inside the loops of others, inside datasets, inside threads."""

import os
import threading
import time
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from headrace import DataLoader
from workers.failure.user_code import Numbers, indices_of

WHOLE = [[i, i + 1] for i in range(0, 12, 2)]


def loader_of(**options: Any) -> DataLoader[torch.Tensor]:
    return DataLoader(Numbers(12), 2, num_workers=2, backend="process", **options)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_loader_in_the_loop_of_another(persistent: bool) -> None:
    outer = loader_of(persistent_workers=persistent)
    inner = loader_of(persistent_workers=persistent)
    got = []
    for batch in outer:
        got += indices_of([batch])
        assert indices_of(inner) == WHOLE
    assert got == WHOLE


def test_two_iterators_of_one_loader_side_by_side() -> None:
    loader = loader_of()
    for first, second in zip(loader, loader, strict=True):
        assert torch.equal(first, second)


def test_a_worker_killed_in_the_inner_loop_does_not_disturb_the_outer() -> None:
    outer, inner = iter(loader_of()), iter(loader_of())
    got = indices_of([next(outer)])
    next(inner)
    for worker in inner._workers:
        worker.kill()
    got += indices_of([next(outer)])
    list(inner)
    assert got + indices_of(outer) == WHOLE


class Inner(Dataset[torch.Tensor]):
    """Each sample comes from a loader of its own."""

    def __init__(self, workers: int, backend: str) -> None:
        self.options: Any = {"num_workers": workers, "backend": backend}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.cat(list(DataLoader(Numbers(12), 2, **self.options)))[index]


@pytest.mark.parametrize(("workers", "backend"), [(0, "auto"), (2, "inline")])
def test_a_dataset_may_use_a_loader_without_processes(workers: int, backend: str) -> None:
    loader = DataLoader(Inner(workers, backend), 2, num_workers=2)
    assert indices_of(loader) == [[0, 1], [2, 3]]


def test_workers_cannot_have_workers_as_with_torch() -> None:
    loader = DataLoader(Inner(2, "process"), 2, num_workers=2)
    with pytest.raises(AssertionError, match="daemonic processes are not allowed"):
        list(loader)


def test_loaders_in_threads() -> None:
    got: dict[int, Any] = {}

    def run(number: int) -> None:
        got[number] = [indices_of(loader_of()) for _ in range(3)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: [WHOLE] * 3 for number in range(4)}


def test_loaders_in_threads_fork_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, under_way, most = os.fork, [0], [0]

    def slow_fork() -> int:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        time.sleep(0.02)
        pid = fork()
        under_way[0] -= 1
        return pid

    monkeypatch.setattr(os, "fork", slow_fork)
    threads = [threading.Thread(target=lambda: list(loader_of())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_an_iterator_made_in_a_thread_lives_on_in_another() -> None:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(iter(loader_of(worker_restarts=0))))
    thread.start()
    thread.join()
    assert indices_of(made.pop()) == WHOLE


def test_a_worker_of_an_iterator_made_in_a_thread_is_replaced() -> None:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(iter(loader_of())))
    thread.start()
    thread.join()
    iterator = made.pop()
    got = indices_of([next(iterator)])
    iterator._workers[1].kill()
    iterator._workers[1].join()
    assert got + indices_of(iterator) == WHOLE
