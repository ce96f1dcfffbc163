"""Where tasks run. The engine owns order, retries and shutdown; a backend only runs tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod

from headrace.engine.task import Result, Task


class Backend(ABC):
    """Three calls: submit a task, get a result, close.

    ``depth`` is how many tasks are worth having in flight.
    """

    depth: int

    @abstractmethod
    def submit(self, task: Task) -> None:
        """Take a task. Never blocks."""

    @abstractmethod
    def get(self) -> Result:
        """Return a finished task's result, in any order. Blocks until there is one."""

    @abstractmethod
    def close(self) -> None:
        """End everything that was started. May be called twice."""
