"""The end of workers: together, within a second, at the interpreter's exit, and around forks."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from headrace.engine.backends.signals import end_in_child, signals_later
from headrace.engine.forks import Alive

GRACE_S = 0.4


class Ending(Protocol):
    """What a backend of processes does when it ends."""

    def is_open(self) -> bool:
        """Say whether there may be workers to end, which only the process that has them can."""

    def ask_to_leave(self) -> list[int]:
        """Tell the workers to stop; return what to wait for."""

    def kill(self) -> None:
        """Kill every worker that has not left."""

    def reap(self) -> None:
        """Reap the workers, who have left or were killed."""

    def abandon(self) -> None:
        """In a fork of the user's process: let go of everything without touching the workers."""


def end_together(several: list[Ending]) -> None:
    """End the workers of several loaders: they share the second."""
    ours = [backend for backend in several if backend.is_open()]
    try:
        _await_exit([pidfd for backend in ours for pidfd in backend.ask_to_leave()], GRACE_S)
    finally:  # after a second Ctrl-C too
        for backend in ours:
            backend.kill()
        for backend in ours:
            backend.reap()


def _await_exit(pidfds: list[int], limit_s: float) -> None:
    """Wait until all these processes have ended, or the time is over."""
    waiting = select.poll()
    left = set(pidfds)
    for descriptor in left:
        waiting.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + limit_s
    while left:
        ready = waiting.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            return
        for descriptor, _ in ready:
            waiting.unregister(descriptor)
            left.discard(descriptor)


backends: Alive[Ending] = Alive()
_our_forks: set[int] = set()  # threads that are forking a worker
_one_fork = threading.Lock()
_exiting = False


@contextlib.contextmanager
def forking(method: str) -> Iterator[None]:
    """Mark a fork as ours: the child is a worker, not a fork that the user made.

    One at a time: a library that watches over forks (filelock 4) refuses two at once.
    """
    thread = threading.get_ident()
    with _one_fork, signals_later(method):
        try:
            _our_forks.add(thread)
            yield
        finally:
            _our_forks.discard(thread)


def _after_fork_in_child() -> None:
    """Disown the workers: multiprocessing's exit handler would terminate them from the child."""
    global _one_fork
    _one_fork = threading.Lock()  # its owner, in the parent, will not release this one
    ours = threading.get_ident() in _our_forks
    _our_forks.clear()
    end_in_child()
    if not ours:
        for backend in backends:
            backend.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)


def flush() -> None:
    """Write out what user code printed: a worker may leave without the interpreter's exit."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def check_open(pid: int, closing: bool) -> None:
    """Raise where there are no workers of ``pid`` to wait for, which would be for ever."""
    if os.getpid() != pid:
        raise RuntimeError(
            f"this iterator belongs to process {pid}, and this is a fork of it. "
            f"Call iter(loader) in this process."
        )
    if closing:
        if _exiting and threading.current_thread().daemon:
            threading.Event().wait()  # the interpreter ends, and this thread with it
        raise RuntimeError(
            "the workers of this iterator have been ended. Call iter(loader) for others."
        )


def _close_all() -> None:
    global _exiting
    _exiting = True
    end_together(list(backends))


# Before multiprocessing's own handler, which would wait for a worker that ignores SIGTERM.
atexit.register(_close_all)
