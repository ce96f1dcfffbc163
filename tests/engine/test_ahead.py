"""Columns gathered ahead in a background thread: seen by nobody, and gone with its iterator."""

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import RandomSampler, Subset, TensorDataset

from headrace import DataLoader
from oracle import LOADERS, ORDERS, Plan, assert_same, seed_everything, trace

ROWS = 20_000  # five blocks


def columns() -> TensorDataset:
    return TensorDataset(torch.arange(ROWS * 64.0).reshape(ROWS, 64), torch.arange(ROWS))


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "headrace-gather"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    for thread in threads():
        thread.join(10)
    assert threads() == []


@pytest.mark.parametrize("order", ORDERS)
def test_the_same_batches_as_inline(order: str) -> None:
    made = []
    for workers in (0, 2):
        seed_everything(7)
        loader = Plan(order, 32, order_seed=100).build(_with(workers), columns(), None)
        made.append([batch for _ in range(2) for batch in loader])
        if workers and order in ("sequential", "shuffle", "subset", "weighted", "replacement"):
            assert loader.statistics().path == "gather-thread"
    assert_same(made[1], made[0])


def _with(workers: int) -> Any:
    return lambda *args, **options: DataLoader(*args, **options, num_workers=workers)


def test_torch_s_batches_and_generators_at_every_batch() -> None:
    seen = []
    for loader in LOADERS.values():
        seed_everything(3)
        built = loader(columns(), 64, shuffle=True, num_workers=1)
        seen.append([step for _ in range(2) for step in trace(built)])
    for ours, theirs in zip(seen[1], seen[0], strict=True):
        assert_same(ours[0], theirs[0])
    assert seen[1][-1][1] == seen[0][-1][1], "the generators differ after the epochs"


def test_shows_no_workers_and_counts() -> None:
    loader = DataLoader(columns(), 100, num_workers=2, persistent_workers=True)
    iterator = iter(loader)
    assert iterator._workers == []
    assert len(threads()) <= 1
    assert len(list(iterator)) == ROWS // 100
    said = loader.statistics()
    assert (said.path, said.batches, said.samples) == ("gather-thread", ROWS // 100, ROWS)
    assert said.size_bytes == ROWS * (64 * 4 + 8)
    loader._iterator = None


def test_generators_are_used_in_the_user_s_thread_only() -> None:
    seen: set[int] = set()

    class Noticing(RandomSampler):
        def __iter__(self) -> Iterator[int]:
            seen.add(threading.get_ident())
            return super().__iter__()

    list(DataLoader(columns(), 32, sampler=Noticing(columns()), num_workers=2))
    assert seen == {threading.get_ident()}


@pytest.mark.parametrize("step", [0, 1, 5, 130, 400])
def test_a_tensor_edited_between_batches_is_seen(step: int) -> None:
    made = []
    for workers in (0, 2):
        dataset = columns()
        batches = []
        for number, batch in enumerate(DataLoader(dataset, 32, num_workers=workers)):
            batches.append([leaf.clone() for leaf in batch])
            if number == step:
                dataset.tensors[0].mul_(-1)
        made.append(batches)
    assert_same(made[1], made[0])
    assert float(made[1][step + 1][0][0, 1]) < 0


def test_ends_with_break_and_with_the_iterator() -> None:
    loader = DataLoader(columns(), 8, num_workers=2)
    for _ in loader:
        assert len(threads()) == 1
        break
    gc.collect()
    for thread in threads():
        thread.join(10)
    assert threads() == []


def test_needs_no_cycle_collector_to_end() -> None:
    gc.disable()
    try:
        iterator = iter(DataLoader(columns(), 8, num_workers=2))
        next(iterator)
        (thread,) = threads()
        del iterator
        thread.join(10)
        assert not thread.is_alive()
    finally:
        gc.enable()


def test_closed_in_the_middle_it_is_at_its_end() -> None:
    iterator = iter(DataLoader(columns(), 8, num_workers=2))
    next(iterator)
    iterator._shutdown_workers()
    assert threads() == []
    assert len(list(iterator)) < ROWS // 8
    assert list(iterator) == []


def test_an_exhausted_iterator_stays_so() -> None:
    iterator = iter(DataLoader(columns(), 1000, num_workers=1))
    assert len(list(iterator)) == ROWS // 1000
    assert list(iterator) == []
    assert threads() == []


def test_an_index_that_does_not_exist_costs_its_own_batch() -> None:
    dataset = Subset(columns(), [0, 1, 2, 3, ROWS + 5, 5, 6, 7])
    for workers in (0, 1):
        iterator = iter(DataLoader(dataset, 2, num_workers=workers))
        assert next(iterator)[1].tolist() == [0, 1]
        assert next(iterator)[1].tolist() == [2, 3]
        with pytest.raises(IndexError):
            next(iterator)
        assert next(iterator)[1].tolist() == [6, 7]
        assert next(iterator, None) is None


def test_kept_batches_stay_as_they_are() -> None:
    loader = DataLoader(columns(), 8, num_workers=2)
    kept = [batch for _ in range(3) for batch in loader]
    for number, (x, y) in enumerate(kept):
        first = number % (ROWS // 8) * 8
        assert y.tolist() == list(range(first, first + 8))
        assert x[:, 0].tolist() == [64.0 * row for row in range(first, first + 8)]


def test_two_iterators_of_one_loader() -> None:
    loader = DataLoader(columns(), 16, num_workers=2)
    for first, second in zip(loader, loader, strict=True):
        assert_same(first, second)
