"""Ctrl-C while batches and iterators die: Python forgets what is raised by its own code there."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from engine.test_transfer import FakeLane, Source, transfer
from headrace.engine.backends import process, thread
from headrace.engine.forks import Alive
from interrupts.trial import what_there_is
from interrupts.ways import WAYS, Way


@pytest.mark.parametrize("name", WAYS)
def test_no_code_of_pythons_runs_as_a_batch_dies(name: str) -> None:
    called: list[str] = []

    def see(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            called.append(f"{frame.f_code.co_filename}:{frame.f_code.co_qualname}")

    with Way(name) as way:
        for batch in way.loader():
            assert len(batch) == 3
            sys.setprofile(see)
            del batch
            sys.setprofile(None)
    assert called == []


def test_no_code_of_pythons_runs_as_what_is_alive_dies() -> None:
    class Thing:
        pass

    alive: Alive[Thing] = Alive()
    thing = Thing()
    alive.add(thing)
    called = []
    sys.setprofile(lambda *_: called.append(_[1]))
    del thing
    sys.setprofile(None)
    assert [event for event in called if event == "call"] == []
    assert list(alive) == []


@pytest.mark.parametrize(
    ("name", "module"), [("processes", process), ("threads", thread)], ids=["processes", "threads"]
)
def test_an_iterator_that_was_left_ends_its_workers_in_spite_of_a_ctrl_c(
    name: str, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = what_there_is()
    end_together, times = module.end_together, []

    def interrupted(several: Any) -> None:
        times.append(len(several))
        if len(times) == 1:
            signal.raise_signal(signal.SIGINT)
        end_together(several)

    with Way(name) as way:
        loader = way.loader()
        iterator = iter(loader)
        next(iterator)
        monkeypatch.setattr(module, "end_together", interrupted)
        with forgotten() as interruptions:
            del iterator
        assert times == [1, 1]
        assert interruptions == [KeyboardInterrupt]
        monkeypatch.undo()
        assert len(list(loader)) == len(loader)
    assert what_there_is() == before


def test_copies_are_waited_for_in_spite_of_a_ctrl_c() -> None:
    lane, source = FakeLane(), Source(4)
    batches = transfer(source, lane)
    next(batches)
    next(batches)
    assert lane.link
    lane.interrupt = True
    with forgotten() as interruptions:
        del batches
    assert interruptions == [KeyboardInterrupt]
    assert not lane.link


@contextmanager
def forgotten() -> Iterator[list[type[BaseException]]]:
    """Have what Python forgets in a list."""
    kinds: list[type[BaseException]] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda what: kinds.append(what.exc_type)
    try:
        yield kinds
    finally:
        sys.unraisablehook = hook
