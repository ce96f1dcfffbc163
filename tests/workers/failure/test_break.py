"""Leaving the loop early ends all workers soon, whatever they are doing."""

import time
from typing import Any

import pytest

from headrace import DataLoader
from workers.failure.processes import SOON, is_running, wait_until
from workers.failure.user_code import Numbers, Stream, Stuck, indices_of


@pytest.mark.parametrize("workers", [2, 8])
def test_workers_that_are_deaf_to_all_signals_are_gone_soon(workers: int) -> None:
    stuck = Stuck(start=2 * workers)
    loader = DataLoader(Numbers(100, stuck), 2, num_workers=workers)
    pids = []
    for _batch in loader:
        wait_until(lambda: stuck.stuck() == workers, "all workers are stuck")
        pids = [w.pid for w in _iterator_of(loader)] if loader.persistent_workers else []
        started = time.monotonic()
        break
    assert time.monotonic() - started < SOON
    assert not any(is_running(pid) for pid in pids)


def _iterator_of(loader: Any) -> Any:
    return loader._iterator._workers


HALF_USED_STREAM = pytest.param(Stream(50), id="iterable")


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("dataset", [pytest.param(Numbers(50), id="map"), HALF_USED_STREAM])
@pytest.mark.parametrize("after", [0, 1, 7])
def test_workers_leave_by_themselves_with_exit_code_0(dataset: Any, after: int) -> None:
    iterator = iter(DataLoader(dataset, 2, num_workers=2, backend="process"))
    workers = list(iterator._workers)
    for _ in range(after):
        next(iterator)
    del iterator
    assert [w.exitcode for w in workers] == [0, 0]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("dataset", [Numbers(8), Stream(8)], ids=["map", "iterable"])
def test_exhausted_workers_exit_with_code_0(dataset: Any) -> None:
    iterator = iter(DataLoader(dataset, 2, num_workers=2, backend="process"))
    workers = list(iterator._workers)
    list(iterator)
    assert [w.exitcode for w in workers] == [0, 0]


@pytest.mark.usefixtures("patient")
def test_a_worker_that_waits_for_room_to_answer_leaves_by_itself() -> None:
    class Medium(Numbers):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index).repeat(2)[:3900]

    dataset = Medium(400)
    iterator = iter(DataLoader(dataset, 1, num_workers=1, prefetch_factor=200))
    (worker,) = iterator._workers

    def waits() -> bool:
        with open(f"/proc/{worker.pid}/wchan") as place:
            return "alloc_send" in place.read()

    wait_until(waits, "the socket is full")
    del iterator
    assert worker.exitcode == 0


def test_an_exception_in_the_loop_ends_the_workers() -> None:
    loader = DataLoader(Numbers(50), 2, num_workers=2)
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            1 / 0


def test_persistent_workers_stay_when_the_loop_is_left_and_go_with_the_loader() -> None:
    loader = DataLoader(Numbers(50), 2, num_workers=2, persistent_workers=True)
    pids = []
    for _ in range(3):
        for _batch in loader:
            pids.append([w.pid for w in _iterator_of(loader)])
            break
    assert pids[0] == pids[1] == pids[2]
    assert indices_of(loader) == [[i, i + 1] for i in range(0, 50, 2)]
    del loader
    assert not any(is_running(pid) for pid in pids[0])


def test_next_on_an_iterator_whose_workers_were_ended_is_an_error() -> None:
    iterator = iter(DataLoader(Numbers(50), 2, num_workers=2))
    next(iterator)
    iterator._shutdown_workers()
    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"Call iter\(loader\)"):
            next(iterator)


def test_a_loop_left_at_once_leaves_nothing() -> None:
    for _ in range(5):
        iter(DataLoader(Numbers(50), 2, num_workers=2))
