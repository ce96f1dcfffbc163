"""Iterators and loaders that are let go of end their workers, also as part of a circle."""

import gc
import time
import warnings
import weakref
from typing import Any

from headrace import DataLoader
from workers.failure.processes import (
    SOON,
    is_running,
    open_descriptors,
    shared_segments,
    wait_until,
)
from workers.failure.user_code import Numbers, Stuck


def test_the_last_reference_ends_the_workers_at_once() -> None:
    iterator = iter(DataLoader(Numbers(50), 2, num_workers=2))
    pids = [w.pid for w in iterator._workers]
    next(iterator)
    gc.disable()
    try:
        del iterator
        assert not any(is_running(pid) for pid in pids)
    finally:
        gc.enable()


def test_a_circle_is_ended_by_the_collector_without_a_warning() -> None:
    class Holder:
        pass

    holder: Any = Holder()
    holder.me = holder
    holder.iterator = iter(DataLoader(Numbers(50), 2, num_workers=2))
    pids = [w.pid for w in holder.iterator._workers]
    next(holder.iterator)
    del holder
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    assert not any(is_running(pid) for pid in pids)


def test_stuck_workers_are_gone_soon() -> None:
    stuck = Stuck()
    iterator = iter(DataLoader(Numbers(50, stuck), 2, num_workers=4))
    wait_until(lambda: stuck.stuck() == 4, "all workers are stuck")
    started = time.monotonic()
    del iterator
    assert time.monotonic() - started < SOON


def test_the_shared_memory_goes_with_the_loader_and_the_last_batch() -> None:
    loader = DataLoader(Numbers(50), 2, num_workers=2)
    batches = list(loader)
    kept = batches[3]
    del loader, batches
    gc.collect()
    assert shared_segments() == 1
    assert kept[0, 0] == 6
    del kept
    assert shared_segments() == 0


def test_a_new_iterator_of_a_loader_does_not_wait_for_the_old_one() -> None:
    loader = DataLoader(Numbers(50), 2, num_workers=1)
    first, second = iter(loader), iter(loader)
    assert next(first)[0, 0] == next(second)[0, 0] == 0
    del first
    assert next(second)[0, 0] == 2


def test_the_dataset_is_let_go_of() -> None:
    dataset = Numbers(50)
    reference = weakref.ref(dataset)
    loader = DataLoader(dataset, 2, num_workers=2)
    next(iter(loader))
    del dataset, loader
    assert reference() is None


def test_half_used_iterators_pile_nothing_up() -> None:
    loader = DataLoader(Numbers(50), 2, num_workers=1)
    next(iter(loader))
    before = len(open_descriptors())
    for _ in range(10):
        next(iter(loader))
    assert len(open_descriptors()) <= before
