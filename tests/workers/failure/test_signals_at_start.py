"""Signals that come while a worker is forked: the program hears of each, once, and then."""

import gc
import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import headrace
from headrace.engine.backends import signals
from headrace.engine.backends.signals import signals_later
from processes import Forked

Fork = Callable[[Callable[[Forked], object]], Forked]


class AlarmError(Exception):
    """What a handler of the program raises."""


def alarm(*_: object) -> None:
    raise AlarmError


class WhoHandles(headrace.Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> str:
        return str(signal.getsignal(signal.SIGUSR1) is alarm)


def log_in_a_thread() -> bool:
    """Say whether a thread can write to a log: forks take the lock that it takes."""
    thread = threading.Thread(target=logging.getLogger, args=("headrace.tests",), daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM, signal.SIGTERM])
def test_what_a_handler_raises_during_a_fork_reaches_the_program(fork: Fork, number: int) -> None:
    def program(me: Forked) -> None:
        due = [number, number]  # at two workers
        os.register_at_fork(before=lambda: due and signal.raise_signal(due.pop()))
        signal.signal(number, alarm)
        loader = headrace.DataLoader(WhoHandles(), num_workers=2)
        for _ in range(2):
            with pytest.raises(AlarmError):
                iter(loader)
            gc.collect()
        assert signal.getsignal(number) is alarm
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert len(list(loader)) == 4
        me.say("well")

    one = fork(program)
    assert one.heard() == "well"
    assert one.end() == 0


def test_an_alarm_at_any_moment_of_a_start_is_heard_and_leaves_no_lock(fork: Fork) -> None:
    def program(me: Forked) -> None:
        def raising(*_: object) -> None:
            raise KeyboardInterrupt  # as Ctrl-C: not to be taken for an error of the dataset

        signal.signal(signal.SIGALRM, raising)
        loader = headrace.DataLoader(WhoHandles(), num_workers=2)
        for number in range(10):
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.003 * number)
                iterator = iter(loader)
                signal.pause()
            iterator = None  # noqa: F841
        assert log_in_a_thread()
        me.say("well")

    one = fork(program)
    assert one.heard() == "well"
    assert one.end() == 0


def test_a_worker_has_the_handlers_of_the_program() -> None:
    before = signal.signal(signal.SIGUSR1, alarm)
    try:
        said = [
            text for batch in headrace.DataLoader(WhoHandles(), 2, num_workers=2) for text in batch
        ]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert said == ["True"] * 4


def test_other_threads_start_workers_without_touching_signals() -> None:
    seen = []

    def start() -> None:
        with signals_later("fork"):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


class TestAnEndThatIsInterrupted:
    def test_who_was_not_put_back_passes_on(self) -> None:
        before = signal.signal(signal.SIGUSR1, alarm)
        try:
            section = signals._Section()
            section.begin()
            section.over = True  # and no further
            assert signal.getsignal(signal.SIGUSR1) is not alarm
            with pytest.raises(AlarmError):
                signal.raise_signal(signal.SIGUSR1)
            with signals_later("fork"):
                pass
            assert signal.getsignal(signal.SIGUSR1) is alarm
        finally:
            signal.signal(signal.SIGUSR1, before)
            section.end()

    def test_nor_does_one_wait_whose_section_was_never_ended(self) -> None:
        before = signal.signal(signal.SIGUSR1, alarm)
        try:
            section = signals._Section()
            section.begin()
            gone = weakref.ref(section)
            del section
            assert gone() is None
            with pytest.raises(AlarmError):
                signal.raise_signal(signal.SIGUSR1)
        finally:
            with signals_later("fork"):
                pass
            signal.signal(signal.SIGUSR1, before)
