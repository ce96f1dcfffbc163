"""Where tasks run. The engine owns order, retries and shutdown; a backend only runs tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from headrace.engine.task import Result, Task


class Finished(NamedTuple):
    """A worker's answer to the oldest task it was given."""

    worker: int
    result: Result


class Died(NamedTuple):
    """A worker that is gone, with all tasks it was given; ``how`` is a sentence for people."""

    worker: int
    pid: int
    how: str


class Backend(ABC):
    """Runs tasks: submit one, get a result, close.

    ``workers`` run side by side; each takes its tasks in the order they were submitted.
    """

    workers: int = 1
    waiting: bool = True  # nothing is half taken, or half given: see headrace.engine.doubt

    @abstractmethod
    def submit(self, worker: int, task: Task) -> None:
        """Give a worker a task. Never blocks."""

    @abstractmethod
    def get(self, timeout_s: float | None) -> Finished | Died | None:
        """Return what happens next, or None when nothing does for ``timeout_s``."""

    @abstractmethod
    def close(self) -> None:
        """End everything that was started, within a second. May be called twice."""

    def is_open(self) -> bool:
        """Say whether tasks may be submitted: not after the end, nor in a fork of the process."""
        return True

    def check(self) -> None:  # noqa: B027 - none here
        """Raise when there is nothing left that could run a task."""

    def retract(self, worker: int) -> list[Task]:  # noqa: ARG002 - none here
        """Take back the tasks that a worker has not started, oldest first."""
        return []

    def replace(self, worker: int, done: list[Task], state: Any) -> None:
        """Start a dead worker again.

        Its iterable dataset goes on from ``state``, if that is known, and past the tasks ``done``.
        """
        raise NotImplementedError

    def renew(self) -> None:  # noqa: B027 - an interrupted task is simply run again
        """End the workers and whatever is under way with them, and start others."""

    def describe(self, worker: int) -> str:
        """Say what a worker is doing, for an error: its pid, its state, where its code stands."""
        return f"worker {worker}"
