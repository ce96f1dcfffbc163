"""Signals that wait until a worker has been started.

A handler that raises (Ctrl-C, an alarm) must not do so between a fork and the note of whom it made,
or a worker would be left. And while Python runs what was registered for a fork it forgets what is
raised: the program would not hear of its signal, and the lock that such a hook holds (logging has
one) would never be released, so that the next fork in another thread hangs.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any]

_NUMBERS = sorted(signal.valid_signals())
_present: _Section | None = None


class _Section:
    """A time in which handlers written in Python wait."""

    def __init__(self) -> None:
        self.over = False
        self.came: dict[_Later, int] = {}
        self._put: dict[int, _Later] = {}

    def begin(self) -> None:
        for number in _NUMBERS:
            handler: Any = signal.getsignal(number)
            if isinstance(handler, _Later):  # left by a section whose end was interrupted
                handler = handler.handler
            if callable(handler):  # neither SIG_DFL nor SIG_IGN, nor one that is not Python's
                self._put[number] = later = _Later(handler, self)
                signal.signal(number, later)

    def end(self) -> None:
        """Put the handlers back. An interruption costs nothing: who waits no more passes on."""
        self.over = True
        for number, later in self._put.items():
            present: Any = signal.getsignal(number)
            if present is later:
                signal.signal(number, later.handler)


class _Later:
    """A handler that waits while its section lasts, and is the one it stands for afterwards."""

    def __init__(self, handler: _Handler, section: _Section) -> None:
        self.handler = handler
        self._section = weakref.ref(section)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        section = self._section()
        if section is None or section.over:
            self.handler(number, frame)
        else:
            section.came[self] = number


@contextlib.contextmanager
def signals_later(method: str) -> Iterator[None]:
    """Have signals handled behind the start of a worker by ``method``."""
    global _present
    if threading.current_thread() is not threading.main_thread():  # handlers run there only
        yield
        return
    section = _Section()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        _present = section
        section.begin()
        if method != "forkserver":
            # For "spawn": its child would show a traceback if Ctrl-C came in an import. The server
            # of "forkserver" would inherit the mask, and it serves others too. The mask alone would
            # not do here: another thread may take the signal that this one has masked.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        finally:
            section.end()
            _present = None
            for later, number in section.came.items():
                later.handler(number, sys._getframe())


def end_in_child() -> None:
    """In a worker: have its signals handled as the program means it; ours are the program's."""
    global _present
    section, _present = _present, None
    if section is not None:
        section.end()
