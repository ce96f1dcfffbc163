"""Workers that are stopped (SIGSTOP, a debugger) are named by the timeout, and can be ended."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from headrace import DataLoader
from headrace.errors import WorkerTimeoutError
from workers.failure.processes import SOON, children_of, state_of, wait_until
from workers.failure.user_code import Numbers, indices_of

WHOLE = [[i, i + 1] for i in range(0, 24, 2)]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state_of(pid) == "T", "it is stopped")
    yield
    if state_of(pid) == "T":
        os.kill(pid, signal.SIGCONT)


def begin(**options: Any) -> tuple[Any, int]:
    """An iterator over 12 batches of two workers, and the pid of the spare."""
    before = children_of(os.getpid())
    options = {"batch_size": 2, "num_workers": 2, "backend": "process", **options}
    iterator = iter(DataLoader(Numbers(24), **options))
    (spare,) = children_of(os.getpid()) - before - {w.pid for w in iterator._workers}
    return iterator, spare


def test_a_stopped_worker_is_named_by_the_timeout_and_may_go_on() -> None:
    iterator, _ = begin(timeout=0.3, prefetch_factor=1)
    got = indices_of([next(iterator) for _ in range(2)])
    pid = iterator._workers[0].pid
    what = f"pid {pid} is stopped.*kill -CONT {pid}"
    with stopped(pid), pytest.raises(WorkerTimeoutError, match=what):
        for _ in range(4):  # some may have been made before
            got += indices_of([next(iterator)])
    assert got + indices_of(iterator) == WHOLE


@pytest.mark.parametrize("who", ["one worker", "all workers", "spare", "everyone"])
def test_stopped_processes_are_ended_soon(who: str) -> None:
    iterator, spare = begin()
    next(iterator)
    pids = [w.pid for w in iterator._workers]
    chosen = {"one worker": pids[:1], "all workers": pids, "spare": [spare]}
    for pid in chosen.get(who, [*pids, spare]):
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda pid=pid: state_of(pid) == "T", "it is stopped")
    started = time.monotonic()
    del iterator
    assert time.monotonic() - started < SOON
    assert not any(state_of(pid) for pid in [*pids, spare])


def test_a_worker_is_replaced_though_the_spare_is_stopped() -> None:
    iterator, spare = begin()
    got = indices_of([next(iterator)])
    with stopped(spare):
        iterator._workers[0].kill()
        assert got + indices_of(iterator) == WHOLE


def test_workers_that_the_spare_has_forked_are_ended_though_it_is_stopped() -> None:
    iterator, spare = begin()
    got = indices_of([next(iterator)])
    for worker in iterator._workers:
        worker.kill()
    got += indices_of([next(iterator) for _ in range(8)])
    pids = [w.pid for w in iterator._workers]
    os.kill(spare, signal.SIGSTOP)
    wait_until(lambda: state_of(spare) == "T", "it is stopped")
    started = time.monotonic()
    del iterator
    assert time.monotonic() - started < SOON
    assert not any(state_of(pid) not in ("", "Z") for pid in pids)
