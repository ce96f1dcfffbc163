"""Tasks run in the user's process, when their result is asked for."""

from __future__ import annotations

from headrace.engine.backends.base import Backend, Finished
from headrace.engine.making.fetch import Fetcher
from headrace.engine.task import Task


class InlineBackend(Backend):
    """Runs the one task in flight inside :meth:`get`."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._task: Task | None = None

    def submit(self, worker: int, task: Task) -> None:  # noqa: ARG002
        """Keep the task until it is due."""
        self._task = task

    def get(self, timeout_s: float | None) -> Finished:  # noqa: ARG002
        """Run it."""
        assert self._task is not None
        return Finished(0, self._fetcher(self._task))

    def close(self) -> None:
        """Nothing was started."""
