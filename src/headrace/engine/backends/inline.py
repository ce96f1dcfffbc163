"""Tasks run in the user's process, when their result is asked for."""

from __future__ import annotations

from headrace.engine.backends.base import Backend
from headrace.engine.fetch import Fetcher
from headrace.engine.task import Result, Task


class InlineBackend(Backend):
    """Runs the one task in flight inside :meth:`get`."""

    depth = 1

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._task: Task | None = None

    def submit(self, task: Task) -> None:
        """Keep the task until it is due."""
        self._task = task

    def get(self) -> Result:
        """Run it."""
        assert self._task is not None
        return self._fetcher(self._task)

    def close(self) -> None:
        """Nothing was started."""
