"""What a fork asks for, while other threads make and drop what it asks about."""

import gc
import os
import sys
import threading
import time
import weakref

import pytest

from headrace.engine import forks
from headrace.engine.backends.ending import backends
from headrace.engine.forks import Alive
from headrace.engine.lease import Memory, memory_at
from headrace.engine.shared import Home
from headrace.engine.wire import close_inherited, pair


class Thing:
    def abandon(self):
        pass


@pytest.fixture
def unraisable(monkeypatch):
    found = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: found.append(repr(error.exc_value)))
    return found


@pytest.fixture
def churn():
    """Make and drop things of a kind in three threads, switching as often as can be."""
    interval, stop, threads = sys.getswitchinterval(), threading.Event(), []
    # While one thread collects, and lets others in at each descriptor that it closes, those make
    # more than it takes: without a bound there is no descriptor left in the end.
    room = [None] * 100  # no lock: it is given back wherever the collector runs

    class Some(list):
        def __del__(self):
            room.append(None)

    def start(make):
        def run():
            while not stop.is_set():
                try:
                    room.pop()
                except IndexError:
                    gc.collect()
                    time.sleep(0.001)
                    continue
                some = Some(make() for _ in range(20))
                some.append(some)  # a circle: the collector takes it, at any moment
                del some

        sys.setswitchinterval(1e-6)
        threads.extend(threading.Thread(target=run) for _ in range(3))
        for thread in threads:
            thread.start()

    yield start
    stop.set()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)


def for_a_while(seconds=1.5):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield


def test_no_loader_misses_a_fork(churn, unraisable):
    kept = [Home() for _ in range(300)]
    churn(Home)
    for _ in for_a_while():
        before = [home.forks for home in kept]
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        assert all(home.forks != count for home, count in zip(kept, before, strict=True))
    assert not unraisable


def test_both_sides_of_a_fork_are_counted():
    # What another thread hands out between the fork and the hook behind it is the child's too.
    before = forks.count()
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert forks.count() == before + 2


@pytest.mark.parametrize("kind", ["things", "backends", "descriptors", "memories"])
def test_what_lives_is_walked_while_threads_change_it(churn, unraisable, kind):
    alive = Alive()

    def thing():
        one = Thing()
        (backends if kind == "backends" else alive).add(one)
        return one

    def walk():
        if kind == "descriptors":
            keep = [end for two in kept for end in two]
            assert all(end.fileno() >= 0 for end in keep)
            close_inherited_of_none(keep)
        elif kind == "memories":
            for memory in kept:
                assert memory_at(memory.address + 8) is memory
        else:
            assert set(kept) <= set(backends if kind == "backends" else alive)

    makers = {"descriptors": pair, "memories": lambda: Memory.private(4096)}
    make = makers.get(kind, thing)
    kept = [make() for _ in range(20)]
    churn(make)
    for _ in for_a_while():
        walk()
    assert not unraisable


def close_inherited_of_none(keep):
    """Walk over all open ends as a forked worker does, in a fork: it closes what is not kept."""
    child = os.fork()
    if not child:
        code = 1
        try:
            close_inherited(*keep)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_what_is_dropped_is_forgotten():
    alive, one, other = Alive(), Thing(), Thing()
    alive.add(one)
    alive.add(other)
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None
    assert list(alive) == [other]
    assert len(alive._found) == 1
